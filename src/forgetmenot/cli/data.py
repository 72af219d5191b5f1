"""Build one dataset: `python -m forgetmenot.cli.data --request <file>`."""

from forgetmenot import plugins
from forgetmenot.stage import Job, stage


def main(job: Job) -> None:
    """Build the dataset that `job.spec` describes: {"builder": plugin, "options": {...}}."""
    builder = plugins.load("data", job.spec["builder"])
    builder.build(builder.Options(**job.spec["options"]), job.inputs, job.out)


if __name__ == "__main__":
    stage(main)
