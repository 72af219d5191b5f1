"""Short-context language sets through lm-eval's own tasks, on the files of a built folder.

lm-eval makes the prompts and scores them; only where the rows come from is changed. Its task for
WikiText also scores the stand-in wikitext2_unk, under that name.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from forgetmenot import model as models
from forgetmenot.data.tokenizer_folder import read_tokenizer_meta
from forgetmenot.errors import UserError
from forgetmenot.evaluate.lm_eval_tasks import LocalTask, TaskResult, run_tasks
from forgetmenot.evaluate.perplexity import perplexity_metric
from forgetmenot.evaluate.results import (
    Metric,
    Sample,
    Skip,
    metric,
    require_vocabulary,
    skipped,
    write_results,
)
from forgetmenot.evaluate.score import mean_stderr

# Each set's task in lm-eval's tree.
TASKS = {
    "wikitext": "wikitext/wikitext",
    "wikitext2_unk": "wikitext/wikitext",
    "lambada_openai": "lambada/lambada_openai",
    "piqa": "piqa/piqa",
    "hellaswag": "hellaswag/hellaswag",
    "winogrande": "winogrande/default",
    "arc_easy": "arc/arc_easy",
    "arc_challenge": "arc/arc_challenge",
    "social_iqa": "siqa/siqa",
    "boolq": "super_glue/boolq/default",
}
# The accuracies of the usual average; normalised by length for these two.
NORMALISED = ("hellaswag", "arc_challenge")
AVERAGED = (
    *("lambada_openai", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge"),
    *("social_iqa", "boolq"),
)
# What lm-eval's task may look for beside the one file there is.
ONE_SPLIT = {
    "dataset_path": "json",
    "dataset_name": None,
    "training_split": None,
    "validation_split": None,
    "test_split": "test",
    "tag": None,
}


@dataclass(frozen=True)
class Options:
    """Which sets to score."""

    sets: list[str] | None = None  # sets to score; null = all that were built
    samples: int | None = None  # first rows of each set to score; null = all that were built
    max_length: int = 4096  # most tokens of a request, and of a window of WikiText
    batch_size: int = 16  # sequences per forward pass

    def __post_init__(self) -> None:
        for key in ("samples", "max_length", "batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: found {value}, allowed: 1 or more")


def evaluate(model_dir: Path, data_dir: Path, options: Options, out: Path, device: str) -> None:
    """Write results.json and samples.jsonl: at {"set"} "accuracy", "accuracy_norm", "perplexity"
    (of the last word), "word_perplexity" and "bits_per_byte", each where lm-eval's task has it, and
    "accuracy_mean" over the usual eight sets if all were scored.

    Sets that the data folder lacks are named under "skipped". Raises UserError for a set that was
    not built, and for a request that does not fit `max_length`.
    """
    model = models.load(model_dir).to(device)
    meta = json.loads((data_dir / "meta.json").read_text(encoding="utf-8"))
    require_vocabulary(model, read_tokenizer_meta(data_dir)["vocab_size"], data_dir)
    metrics, samples, skips = measure(model, data_dir, options, device)
    write_results(out, "language", metrics, samples, about={"sets": meta["sets"]}, skips=skips)


def measure(
    model: nn.Module, data_dir: Path, options: Options, device: str
) -> tuple[list[Metric], list[Sample], list[Skip]]:
    """Scores with standard errors over rows (documents of WikiText), samples, what was skipped."""
    meta = json.loads((data_dir / "meta.json").read_text(encoding="utf-8"))
    known = {**meta["sets"], **meta["skipped"]}
    chosen = list(known) if options.sets is None else options.sets
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise UserError(f"{data_dir}: sets: found {unknown}, allowed: {sorted(known)}")
    built = [name for name in chosen if name in meta["sets"]]
    results = run_tasks(
        model,
        data_dir,
        [LocalTask(name, TASKS[name], data_dir / f"{name}.jsonl", ONE_SPLIT) for name in built],
        limit=options.samples,
        max_length=options.max_length,
        batch_size=options.batch_size,
        device=device,
    )
    metrics: list[Metric] = []
    samples: list[Sample] = []
    for name in built:
        found, lines = _score(name, results[name])
        metrics += found
        samples += lines
    skips = [skipped({"set": n}, meta["skipped"][n]) for n in chosen if n in meta["skipped"]]
    return [*metrics, *_average(metrics)], samples, skips


def _score(name: str, result: TaskResult) -> tuple[list[Metric], list[Sample]]:
    """The metrics of one set and a line a row."""
    at, values, logged = {"set": name}, result.metrics, result.samples
    lines: list[Sample] = [{"id": f"{name}/{sample['doc_id']}", "at": at} for sample in logged]
    if "word_perplexity" in values:
        return _texts(at, values, logged, lines), lines
    metrics = []
    for ours, theirs in (("accuracy", "acc"), ("accuracy_norm", "acc_norm")):
        if theirs in values:
            scores = [float(sample[theirs]) for sample in logged]
            stderr = mean_stderr(scores)[1]
            metrics.append(metric(ours, at, values[theirs], stderr, len(scores)))
            _add(lines, ours, scores)
    if "perplexity" in values:
        losses = [-sample["perplexity"] for sample in logged]
        ones = [1] * len(losses)
        metrics.append(
            {**perplexity_metric("perplexity", losses, ones, values["perplexity"]), "at": at}
        )
        _add(lines, "loss", losses)
    return metrics, lines


def _texts(
    at: dict[str, Any], values: dict[str, Any], logged: list[dict[str, Any]], lines: list[Sample]
) -> list[Metric]:
    """Perplexities of whole texts."""
    losses = [-sample["word_perplexity"][0] for sample in logged]
    words = [sample["word_perplexity"][1] for sample in logged]
    sizes = [sample["byte_perplexity"][1] for sample in logged]
    _add(lines, "log_likelihood", [-loss for loss in losses])
    _add(lines, "words", words)
    _add(lines, "bytes", sizes)
    by_word = perplexity_metric("word_perplexity", losses, words, values["word_perplexity"])
    by_byte = perplexity_metric("byte_perplexity", losses, sizes, values["byte_perplexity"])
    stderr = by_byte["stderr"]
    # bits = log2 of the perplexity, so the error follows by the derivative.
    bits_stderr = None if stderr is None else stderr / by_byte["value"] / math.log(2)
    bits = metric("bits_per_byte", at, values["bits_per_byte"], bits_stderr, len(losses))
    return [{**by_word, "at": at}, bits]


def _add(lines: list[Sample], key: str, values: Sequence[float]) -> None:
    for line, value in zip(lines, values, strict=True):
        line[key] = value


def _average(metrics: list[Metric]) -> list[Metric]:
    """The mean of the eight usual accuracies, if all are there."""
    found = {
        entry["at"]["set"]: entry
        for entry in metrics
        if entry["metric"] == ("accuracy_norm" if entry["at"]["set"] in NORMALISED else "accuracy")
    }
    if not set(AVERAGED) <= set(found):
        return []
    group = [found[name] for name in AVERAGED]
    errors = [entry["stderr"] for entry in group]
    known = None if None in errors else math.hypot(*errors) / len(group)
    value = sum(entry["value"] for entry in group) / len(group)
    return [metric("accuracy_mean", {}, value, known, sum(entry["n"] for entry in group))]
