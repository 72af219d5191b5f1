"""Stage `evaluate`: score one trained model on one task."""

import json
from typing import Any

from forgetmenot import plugins
from forgetmenot.errors import UserError
from forgetmenot.files import write_json
from forgetmenot.stage import Job, stage


def main(job: Job) -> None:
    """Score a trained model on one task.

    job.spec: {"evaluator": plugin, "task": name, "options": {...}, "device": auto | cpu | cuda};
    job.inputs: {"model": training output, "data": built dataset}.
    """
    evaluator = plugins.load("evaluate", job.spec["evaluator"])
    try:
        options = evaluator.Options(**job.spec["options"])
    except (TypeError, ValueError) as error:
        raise UserError(f"task {job.spec['task']}: options: {error}") from None
    evaluator.evaluate(
        job.inputs["model"], job.inputs["data"], options, job.out, device(job.spec["device"])
    )
    path = job.out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text())
    write_json(path, {**results, "task": job.spec["task"]})


def device(name: str) -> str:
    """The torch device of the setting: auto takes the GPU if there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: found cuda, but torch sees no GPU here; allowed: auto, cpu")
    return name


if __name__ == "__main__":
    stage(main)
