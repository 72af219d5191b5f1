"""Whether a model with learnable token eviction kept the needle, against whether it answered.

A value of the needle counts as kept by a head if the last token of the prompt, which begins the
answer, can attend to all its tokens there. Needles that every eviction layer still has in its
window or among its sinks say nothing about eviction and are left out of the shares.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from forgetmenot import model as models
from forgetmenot.data.tokenizer_folder import load_tokenizer, read_tokenizer_meta
from forgetmenot.evaluate import niah
from forgetmenot.evaluate.generate import length_batches
from forgetmenot.evaluate.kept_map import evicting_layers
from forgetmenot.evaluate.results import (
    Metric,
    Sample,
    metric,
    read_lines,
    require_vocabulary,
    write_results,
)
from forgetmenot.evaluate.score import mean_stderr
from forgetmenot.files import write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Options:
    """Which samples to audit; as in the evaluator `niah`."""

    tasks: list[str] | None = None  # needle tasks to audit; null = all that were built
    lengths: list[int] | None = None  # context lengths to audit, in tokens; null = all built
    samples: int | None = 100  # samples per task and length; null = all that were built
    max_new_tokens: int = 128  # generated tokens; RULER's 128
    max_length: int = 4096  # most tokens of prompt and continuation; a longer sample is an error
    batch_size: int = 4  # prompts run together

    def __post_init__(self) -> None:
        for key in ("samples", "max_new_tokens", "max_length", "batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: found {value}, allowed: 1 or more")


def evaluate(model_dir: Path, data_dir: Path, options: Options, out: Path, device: str) -> None:
    """Write results.json, samples.jsonl ({"seen": {layer: share of value tokens by head}}) and
    audit.json (the shares by task, length, answer, layer and head: see `by_head`).

    At {"task", "length"}: "accuracy" of all samples; over those with the needle out of reach of
    window and sinks, "kept" (share of its tokens, mean over layers and heads) also by "answer"
    (right, wrong), "kept_whole" (some head has all of it), and "accuracy_if" at {"needle": kept or
    lost} (kept: whole, by some head). Raises UserError if the model has no layer with token
    eviction.
    """
    model = models.load(model_dir).to(device)
    require_vocabulary(model, read_tokenizer_meta(data_dir)["vocab_size"], data_dir)
    metrics, samples = measure(model, data_dir, options, device)
    write_results(out, "niah_audit", metrics, samples)
    write_json(out / "audit.json", {"groups": by_head(samples)})


def measure(
    model: Any, data_dir: Path, options: Options, device: str
) -> tuple[list[Metric], list[Sample]]:
    """Answers as in the evaluator `niah`, and what each head still saw of the needle."""
    answered = niah.measure(
        model,
        data_dir,
        niah.Options(
            tasks=options.tasks,
            lengths=options.lengths,
            samples=options.samples,
            max_new_tokens=options.max_new_tokens,
            max_length=options.max_length,
            batch_size=options.batch_size,
        ),
        device,
    )[1]
    tokenizer = load_tokenizer(data_dir)
    prompts = {line["id"]: line for line in _lines(data_dir, answered)}
    encodings = [tokenizer.encode(prompts[sample["id"]]["input"]) for sample in answered]
    for batch in length_batches([len(e.ids) for e in encodings], options.batch_size, 1):
        ids_BT = torch.tensor([encodings[index].ids for index in batch], device=device)
        layers = evicting_layers(model, ids_BT)
        for row, index in enumerate(batch):
            sample = answered[index]
            line = prompts[sample["id"]]
            places = value_tokens(tokenizer, line["input"], line["outputs"])
            sample["seen"] = {
                str(layer): seen_BTH[row, places].double().mean(0).tolist()
                for layer, _, seen_BTH in layers
            }
            sample["out_of_reach"] = _out_of_reach(model, layers, places, len(ids_BT[row]))
    return summarise(answered), answered


def value_tokens(tokenizer: "Tokenizer", text: str, values: list[str]) -> list[int]:
    """Places of the tokens that have characters of a value, in the encoded text."""
    spans = []
    for value in values:
        start = text.find(value)
        while start >= 0:
            spans.append((start, start + len(value)))
            start = text.find(value, start + 1)
    offsets = tokenizer.encode(text).offsets
    return [
        place
        for place, (begin, end) in enumerate(offsets)
        if any(begin < stop and start < end for start, stop in spans)
    ]


def summarise(samples: list[Sample]) -> list[Metric]:
    """The metrics of `evaluate`."""
    metrics: list[Metric] = []
    groups: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample["at"]["task"], sample["at"]["length"]), []).append(sample)
    for (task, length), group in groups.items():
        at = {"task": task, "length": length}
        metrics += _mean("accuracy", at, [sample["accuracy"] for sample in group])
        group = [sample for sample in group if sample["out_of_reach"]]
        metrics += _mean("kept", at, [_kept(sample) for sample in group])
        metrics += _mean("kept_whole", at, [float(_whole(sample)) for sample in group])
        for answer, right in (("right", True), ("wrong", False)):
            chosen = [_kept(s) for s in group if (s["accuracy"] == 1) == right]
            metrics += _mean("kept", at | {"answer": answer}, chosen)
        for needle, whole in (("kept", True), ("lost", False)):
            found = [s["accuracy"] for s in group if _whole(s) == whole]
            metrics += _mean("accuracy_if", at | {"needle": needle}, found)
    return metrics


def by_head(samples: list[Sample]) -> list[dict[str, Any]]:
    """Mean shares over the samples out of reach, by task, length and answer.

    Each: {"task", "length", "answer": right or wrong, "n", "layers": {layer: [share by head]}}.
    """
    groups: dict[tuple[str, int, str], list[Sample]] = {}
    for sample in samples:
        if sample["out_of_reach"]:
            answer = "right" if sample["accuracy"] == 1 else "wrong"
            key = (sample["at"]["task"], sample["at"]["length"], answer)
            groups.setdefault(key, []).append(sample)
    return [
        {
            **dict(zip(("task", "length", "answer"), key, strict=True)),
            "n": len(group),
            "layers": {
                layer: np.mean([sample["seen"][layer] for sample in group], axis=0).tolist()
                for layer in group[0]["seen"]
            },
        }
        for key, group in sorted(groups.items())
    ]


def _mean(name: str, at: dict[str, Any], values: list[float]) -> list[Metric]:
    return [metric(name, at, *mean_stderr(values), len(values))] if values else []


def _kept(sample: Sample) -> float:
    shares = [share for heads in sample["seen"].values() for share in heads]
    return sum(shares) / len(shares)


def _whole(sample: Sample) -> bool:
    return any(share == 1 for heads in sample["seen"].values() for share in heads)


def _out_of_reach(model: Any, layers: list[Any], places: list[int], length: int) -> bool:
    """Whether no eviction layer has a value's token in its window or among its sinks."""
    options = [model.base.layers[index].options for index, _, _ in layers]
    return all(each.sink <= place < length - each.window for place in places for each in options)


def _lines(data_dir: Path, samples: list[Sample]) -> list[dict[str, Any]]:
    names = dict.fromkeys((s["at"]["task"], s["at"]["length"]) for s in samples)
    files = [data_dir / "test" / f"{task}-{length}.jsonl" for task, length in names]
    return [line for file in files for line in read_lines(file)]
