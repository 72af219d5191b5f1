# forgetmenot: everything that the chosen scale covers, from sources to the report.
# Every job is one request file in work/requests/, written here when its content changes;
# a job reruns when its request or the stamp of a job before it changes. See docs/caching.md.
import importlib.util
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError


configfile: str(Path(workflow.basedir, "workflow/config/config.yaml"))


PYTHON = sys.executable
# What jobs import; found out here, once, instead of by the first job that fails.
MISSING = [
    package
    for package in ("forgetmenot", "mlflow", "pydantic", "torch", "transformers")
    if importlib.util.find_spec(package) is None
]
if MISSING:
    raise WorkflowError(
        f"{PYTHON} lacks {', '.join(MISSING)}; install with: {PYTHON} -m pip install -e ."
    )

# For the jobs: glibc would give the memory of tensors back to the system after each use and fetch it
# again page by page, which takes up to a tenth of a training step on a CPU.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**25))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**28))

from forgetmenot.errors import UserError
from forgetmenot.requests import write_requests
from forgetmenot.resolve import load_plan

try:
    PLAN = load_plan(config, Path(workflow.basedir, "workflow/config"))
except UserError as error:
    raise WorkflowError(str(error)) from None
write_requests(PLAN)


wildcard_constraints:
    dataset="[^/]+",
    run="[^/]+/[^/]+/[^/]+/seed[0-9]+",
    task="(?!train/)[^/]+",


rule all:
    default_target: True
    input:
        report=f"{PLAN.target}/stamp.json",
        store="mlflow/store/stamp.json",


include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
