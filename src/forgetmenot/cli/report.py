"""Make the report of a scale: `python -m forgetmenot.cli.report --request <file>`."""

from pathlib import Path

from forgetmenot.stage import Job, stage

PAPERS = Path("reports/papers")


def main(job: Job) -> None:
    """Write tables, claims, figures and index.html from the results that `job.spec` names.

    Spec: `scale`, `description`, `papers`, `deviations`, `studies` ({name: its configuration, with
    `variants` as {"name", "label", "description"} and its `seeds`}), `tables` and `claims` (see
    report/spec.py), `results` and `trains` ({"<study>/<variant>/seed<k>[/<task>]": folder}).
    """
    from forgetmenot.report import published
    from forgetmenot.report.build import build

    final = job.out.with_name(job.out.name.removesuffix(".partial"))
    for path in build(job.spec, published.read_all(PAPERS), job.out, final):
        job.run.log_artifact(path)


if __name__ == "__main__":
    stage(main)
