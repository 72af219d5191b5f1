rule report:
    input:
        upstream=lambda wildcards: PLAN.stamps(f"reports/{wildcards.scale}"),
        request="work/requests/reports/{scale}.json",
    output:
        "reports/{scale}/stamp.json",
    log:
        "work/logs/reports/{scale}.log",
    message:
        "report {wildcards.scale}"
    shell:
        "{PYTHON:q} -m forgetmenot.cli.report --request {input.request:q} > {log:q} 2>&1"


rule published:
    # The reports that are kept with their results, rendered again from these; no GPU is needed.
    message:
        "published reports"
    shell:
        "{PYTHON:q} -m forgetmenot.cli.report published"
