rule evaluate:
    input:
        upstream=lambda wildcards: PLAN.stamps(f"results/{wildcards.run}/{wildcards.task}"),
        request="work/requests/results/{run}/{task}.json",
    output:
        "results/{run}/{task}/stamp.json",
    log:
        "work/logs/results/{run}/{task}.log",
    threads: PLAN.main.threads
    resources:
        gpu=PLAN.gpus,
    message:
        "evaluate {wildcards.run} on {wildcards.task}"
    shell:
        "{PYTHON:q} -m forgetmenot.cli.evaluate --request {input.request:q} > {log:q} 2>&1"
