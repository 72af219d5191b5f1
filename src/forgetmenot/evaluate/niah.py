"""Needle in a haystack (after RULER): whether the greedy continuation has the answers.

The score is RULER's string match, run by lm-eval on the test files of a built data folder.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from forgetmenot import model as models
from forgetmenot.data.tokenizer_folder import load_tokenizer, read_tokenizer_meta
from forgetmenot.errors import UserError
from forgetmenot.evaluate.lm_eval_tasks import LocalTask, run_tasks
from forgetmenot.evaluate.results import (
    Metric,
    Sample,
    metric,
    read_lines,
    require_vocabulary,
    write_results,
)
from forgetmenot.evaluate.score import mean_stderr

DEPTH_BIN = 10  # percent of the haystack in one row of the map of depths


@dataclass(frozen=True)
class Options:
    """Which samples to run, and how much to generate."""

    tasks: list[str] | None = None  # needle tasks to run; null = all that were built
    lengths: list[int] | None = None  # context lengths to run, in tokens; null = all built
    samples: int | None = None  # samples per task and length; null = all that were built
    max_new_tokens: int = 128  # generated tokens; RULER's 128
    max_length: int = 4096  # most tokens of prompt and continuation; a longer sample is an error
    batch_size: int = 16  # prompts decoded together

    def __post_init__(self) -> None:
        for key in ("samples", "max_new_tokens", "max_length", "batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: found {value}, allowed: 1 or more")


def evaluate(model_dir: Path, data_dir: Path, options: Options, out: Path, device: str) -> None:
    """Write results.json: "accuracy" at {"task", "length"} (the share of the answers that were
    found), "accuracy_at_depth" at {"task", "length", "depth"} (percent, the lower end of a bin of
    ten); samples.jsonl has each one's own depth.

    Raises UserError if a requested file was not built or a sample does not fit `max_length`.
    """
    model = models.load(model_dir).to(device)
    meta = read_tokenizer_meta(data_dir)
    require_vocabulary(model, meta["vocab_size"], data_dir)
    metrics, samples = measure(model, data_dir, options, device)
    about = {key: value for key, value in meta.items() if key in ("haystack", "fill")}
    write_results(out, "niah", [*metrics, *by_depth(samples)], samples, about=about)


def by_depth(samples: list[Sample]) -> list[Metric]:
    """Accuracy by task, length and bin of depths."""
    bins: dict[tuple[str, int, int], list[float]] = {}
    for sample in samples:
        at = sample["at"]
        low = min(at["depth"] // DEPTH_BIN * DEPTH_BIN, 100 - DEPTH_BIN)
        bins.setdefault((at["task"], at["length"], low), []).append(sample["accuracy"])
    return [
        metric(
            "accuracy_at_depth",
            dict(zip(("task", "length", "depth"), key, strict=True)),
            *mean_stderr(values),
            len(values),
        )
        for key, values in sorted(bins.items())
    ]


def measure(
    model: nn.Module, data_dir: Path, options: Options, device: str
) -> tuple[list[Metric], list[Sample]]:
    """Accuracy with its standard error, and every sample with its output."""
    changes = {
        "generation_kwargs": {
            "do_sample": False,
            "max_gen_toks": options.max_new_tokens,
            "until": [],
        }
    }
    chosen = _test_files(data_dir, options)
    _require_room(data_dir, chosen, options)
    tasks = [LocalTask(file.stem, "needle", file, changes) for file in chosen]
    results = run_tasks(
        model,
        data_dir,
        tasks,
        limit=options.samples,
        max_length=options.max_length,
        batch_size=options.batch_size,
        device=device,
    )
    metrics: list[Metric] = []
    samples: list[Sample] = []
    for file, at in chosen.items():
        result = results[file.stem]
        scores = [logged["contains"] for logged in result.samples]
        stderr = mean_stderr(scores)[1]
        metrics.append(metric("accuracy", at, result.metrics["contains"], stderr, len(scores)))
        samples += [_sample(at, logged) for logged in result.samples]
    return metrics, samples


def _test_files(data_dir: Path, options: Options) -> dict[Path, dict[str, Any]]:
    """The files test/<task>-<length>.jsonl that the options choose, each with its axis values."""
    built: dict[Path, dict[str, Any]] = {}
    for file in (data_dir / "test").glob("*-*.jsonl"):
        task, _, length = file.stem.rpartition("-")
        built[file] = {"task": task, "length": int(length)}
    for key, wanted in (("task", options.tasks), ("length", options.lengths)):
        found = {at[key] for at in built.values()}
        if wanted is not None and not set(wanted) <= found:
            raise UserError(f"{data_dir}: {key}: found {wanted}, allowed: {sorted(found)}")
    chosen = [
        (file, at)
        for file, at in built.items()
        if (options.tasks is None or at["task"] in options.tasks)
        and (options.lengths is None or at["length"] in options.lengths)
    ]
    if not chosen:
        raise UserError(f"{data_dir}/test: no <task>-<length>.jsonl there that the options choose")
    return dict(sorted(chosen, key=lambda item: (item[1]["task"], item[1]["length"])))


def _require_room(data_dir: Path, files: Iterable[Path], options: Options) -> None:
    """Raise UserError if an answer is longer than what is generated: its score could only be 0."""
    tokenizer = load_tokenizer(data_dir)
    for file in files:
        for sample in read_lines(file, options.samples):
            answer = ", ".join(sample["outputs"])
            needed = len(tokenizer.encode(answer, add_special_tokens=False).ids)
            if needed > options.max_new_tokens:
                raise UserError(
                    f"{file}: max_new_tokens: found {options.max_new_tokens}, but the answer of "
                    f"{sample['id']} takes {needed} tokens"
                )


def _sample(at: dict[str, Any], logged: dict[str, Any]) -> Sample:
    doc = logged["doc"]
    return {
        "id": doc["id"],
        "at": {**at, "depth": doc["depth"]},
        "accuracy": logged["contains"],
        "tokens": doc["tokens"],
        "answers": doc["outputs"],
        "output": logged["resps"][0][0],
    }
