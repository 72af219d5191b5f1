"""The one form in which every evaluator reports: results.json (long form) and samples.jsonl."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from forgetmenot.errors import UserError
from forgetmenot.files import write_json, write_text

Metric = dict[str, Any]
Sample = dict[str, Any]
Skip = dict[str, Any]


def read_lines(file: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, at most the first `limit`."""
    with file.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in islice(lines, limit)]


def metric(name: str, at: dict[str, Any], value: float, stderr: float | None, n: int) -> Metric:
    """One measured number: `at` holds the axis values, `stderr` is None for n < 2."""
    return {"metric": name, "at": at, "value": value, "stderr": stderr, "n": n}


def skipped(at: dict[str, Any], reason: str) -> Skip:
    """A part of a task that was not scored, at the axis values of its missing numbers, and why."""
    return {"at": at, "reason": reason}


def write_results(
    out: Path,
    task: str,
    metrics: list[Metric],
    samples: Iterable[Sample],
    *,
    about: Mapping[str, Any] | None = None,
    skips: Sequence[Skip] = (),
) -> None:
    """Write out/results.json and out/samples.jsonl.

    results.json: {"task", "metrics", "about", "skipped"}. `about` says what was scored as far as
    the axes do not (a protocol, the name of the haystack), `skips` what was not scored. Raises
    UserError when a value is not finite: a diverged model has no score to report.
    """
    values = {"task": task, "metrics": metrics, "about": dict(about or {}), "skipped": list(skips)}
    try:
        text = "".join(json.dumps(sample, allow_nan=False) + "\n" for sample in samples)
        write_json(out / "results.json", values)
    except ValueError as error:
        raise UserError(
            f"task {task}: a result is not a finite number ({error}); "
            "the model's logits are NaN or infinite, so it cannot be scored"
        ) from None
    write_text(out / "samples.jsonl", text)


def require_vocabulary(model: Any, vocab_size: int, data_dir: Path) -> None:
    """Raise UserError unless model and data have vocabularies of one size."""
    if model.spec["vocab"] != vocab_size:
        raise UserError(
            f"{data_dir}: its vocabulary has {vocab_size} tokens, the model's "
            f"{model.spec['vocab']}; evaluate on data of the tokenizer the model was trained with"
        )
