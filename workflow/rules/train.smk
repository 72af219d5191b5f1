rule train:
    # The weights of a variant: trained, or fetched where others trained and released them.
    input:
        upstream=lambda wildcards: PLAN.stamps(f"results/{wildcards.run}/train"),
        request="work/requests/results/{run}/train.json",
    output:
        "results/{run}/train/stamp.json",
    log:
        "work/logs/results/{run}/train.log",
    threads: PLAN.main.threads
    resources:
        gpu=lambda wildcards: PLAN.gpus * (PLAN.stage(f"results/{wildcards.run}/train") == "train"),
    params:
        stage=lambda wildcards: PLAN.stage(f"results/{wildcards.run}/train"),
    message:
        "{params.stage} {wildcards.run}"
    shell:
        "{PYTHON:q} -m forgetmenot.cli.{params.stage} --request {input.request:q} 2>&1 | tee {log:q}"
