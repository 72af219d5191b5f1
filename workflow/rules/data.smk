rule tracking:
    # The MLflow store. No job waits for it (whoever comes first makes it, under a lock), since
    # Snakemake overlooks other reasons to run a job while one that it waits for is to run.
    input:
        request=PLAN.request_file("mlflow/store"),
    output:
        "mlflow/store/stamp.json",
    log:
        "work/logs/mlflow/store.log",
    priority: 1
    message:
        "tracking store"
    shell:
        "{PYTHON:q} -m forgetmenot.cli.tracking --request {input.request:q} > {log:q} 2>&1"


rule data:
    input:
        upstream=lambda wildcards: PLAN.stamps(f"data/built/{wildcards.dataset}"),
        request="work/requests/data/built/{dataset}.json",
    output:
        "data/built/{dataset}/stamp.json",
    log:
        "work/logs/data/{dataset}.log",
    threads: PLAN.main.threads
    message:
        "data {wildcards.dataset}"
    shell:
        "{PYTHON:q} -m forgetmenot.cli.data --request {input.request:q} > {log:q} 2>&1"
