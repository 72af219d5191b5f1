rule tracking:
    # The MLflow store, once, before anything writes to it in parallel.
    input:
        request=PLAN.request_file("mlflow/store"),
    output:
        "mlflow/store/stamp.json",
    log:
        "work/logs/mlflow/store.log",
    message:
        "tracking store"
    shell:
        "{PYTHON:q} -m forgetmenot.cli.tracking --request {input.request:q} > {log:q} 2>&1"


rule data:
    input:
        upstream=lambda wildcards: PLAN.stamps(f"data/built/{wildcards.dataset}"),
        store=ancient(rules.tracking.output),
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
