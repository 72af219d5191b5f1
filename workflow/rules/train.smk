rule train:
    input:
        upstream=lambda wildcards: PLAN.stamps(f"results/{wildcards.run}/train"),
        request="work/requests/results/{run}/train.json",
    output:
        "results/{run}/train/stamp.json",
    log:
        "work/logs/results/{run}/train.log",
    threads: PLAN.main.threads
    resources:
        gpu=PLAN.gpus,
    message:
        "train {wildcards.run}"
    shell:
        "{PYTHON:q} -m forgetmenot.cli.train --request {input.request:q} 2>&1 | tee {log:q}"
