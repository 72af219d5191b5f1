"""Rule compliance by position: the model writes on under its prompt's rules, each line is checked.

ProSG specification, section 6.8 (body mode "task"). The prompt is read, then the cue; after that
every token is the model's own, and `forgetmenot.data.prosg.rules` checks the lines.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from forgetmenot import model as models
from forgetmenot.data.prosg.evalset import Record, read_records
from forgetmenot.data.prosg.rules import Compliance, compliance
from forgetmenot.data.prosg.world import World
from forgetmenot.evaluate.prosg_controls import controlled_state
from forgetmenot.evaluate.prosg_writer import Writer
from forgetmenot.evaluate.results import Metric, Sample, metric, require_vocabulary, write_results
from forgetmenot.evaluate.retention import clustered_slope
from forgetmenot.evaluate.score import ratio_stderr
from forgetmenot.files import write_text


@dataclass(frozen=True)
class Options:
    """What to write and how to bin it. Controls without meaning for a model are left out."""

    split: Literal["iid", "new-pairs", "new-templates", "long", "dense", "rules-new"] = "iid"
    facts: list[int] | None = None  # facts per prompt; null = all that were built for the split
    tokens: int = 512  # length of the text, with the cue
    bin: int = 64  # width of a position bin in tokens
    temperature: float = 0.0  # 0 = the best token; above 0 = drawn, from the samples' seeds
    samples: int | None = None  # prompts per number of facts; null = all that were built
    batch_size: int = 32  # prompts per forward pass
    controls: list[Literal["none", "wrong-update", "no-update", "wrong-prompt", "no-prompt"]] = (
        field(default_factory=lambda: ["none", "wrong-update", "wrong-prompt", "no-prompt"])
    )

    def __post_init__(self) -> None:
        for key, low in {"tokens": 8, "bin": 1, "batch_size": 1}.items():
            if getattr(self, key) < low:
                raise ValueError(f"{key}: found {getattr(self, key)}, allowed: {low} or more")
        if self.temperature < 0:
            raise ValueError(f"temperature: found {self.temperature}, allowed: 0 or more")
        if self.samples is not None and self.samples < 2:
            raise ValueError(f"samples: found {self.samples}, allowed: 2 or more, or null")
        if not self.controls or (self.facts is not None and not self.facts):
            raise ValueError("controls, facts: found an empty list, allowed: at least one entry")


def evaluate(model_dir: Path, data_dir: Path, options: Options, out: Path, device: str) -> None:
    """Write results.json, samples.jsonl (a line an occasion) and texts.jsonl (what was written).

    Metrics at facts, control, kind of rule and position (first token of a bin): `compliance`, the
    share of occasions at which the rule was followed, left out where there were none, and
    `occasions`, their number a prompt; a trigger rule has one only where the model wrote the
    trigger, and no rule has one in a text without full stops. Without position:
    `compliance_slope`, the change of the share a token. Raises UserError when the folder
    has no "task" files of the split, and when the vocabularies differ.
    """
    world = World.load(data_dir)
    model = models.load(model_dir).to(device)
    require_vocabulary(model, len(world.tokens), data_dir)
    metrics, samples, texts = measure(model, world, data_dir, options, device)
    write_text(out / "texts.jsonl", "".join(f"{json.dumps(text)}\n" for text in texts))
    write_results(out, "prosg_rules", metrics, samples)


def measure(
    model: Any, world: World, data_dir: Path, options: Options, device: str
) -> tuple[list[Metric], list[Sample], list[dict[str, Any]]]:
    """Metrics, checked occasions and texts of every number of facts and every control."""
    metrics: list[Metric] = []
    samples: list[Sample] = []
    texts: list[dict[str, Any]] = []
    built = world.settings["dense_facts" if options.split == "dense" else "facts"]
    for facts in built if options.facts is None else options.facts:
        records = read_records(data_dir, options.split, "task", facts)[: options.samples]
        for control in options.controls:
            written = _write(model, world, records, control, options, device)
            if written is None:
                continue
            at = {"facts": facts, "control": control}
            checked = [
                compliance(record.rules, text)
                for record, text in zip(records, written, strict=True)
            ]
            metrics += _metrics(records, checked, options, at)
            for record, text, found in zip(records, written, checked, strict=True):
                texts.append({"id": record.id, **at, "prompt": record.prompt, "text": text})
                samples += _samples(record, found, at)
    return metrics, samples, texts


def _write(
    model: Any, world: World, records: Sequence[Record], control: str, options: Options, device: str
) -> list[str] | None:
    """The text behind each prompt under one control; None when it does not apply to the model."""
    texts: list[str] = []
    others = [*records[1:], records[0]]
    with torch.inference_mode():
        for start in range(0, len(records), options.batch_size):
            rows = slice(start, start + options.batch_size)
            state = controlled_state(control, model, world, records[rows], others[rows], device)
            if state is None:
                return None
            tokens, temperature = options.tokens, options.temperature
            writer = Writer(model, world, records[rows], state, tokens, device, temperature)
            writer.write(tokens)
            texts += writer.texts()
    return texts


def _metrics(
    records: Sequence[Record],
    checked: Sequence[Sequence[Compliance]],
    options: Options,
    at: dict[str, Any],
) -> list[Metric]:
    """Of every kind of rule in every bin; means over occasions, with errors clustered by prompt."""
    counts: dict[tuple[str, int], list[tuple[float, float]]] = {
        (kind, position): []
        for kind in sorted({rule.kind for record in records for rule in record.rules})
        for position in range(0, options.tokens, options.bin)
    }
    for found in checked:
        cells: dict[tuple[str, int], list[bool]] = {}
        for kind, position, followed in found:
            cells.setdefault((kind, position // options.bin * options.bin), []).append(followed)
        for cell, inside in cells.items():
            counts[cell].append((float(sum(inside)), float(len(inside))))
    metrics = []
    for (kind, position), pairs in counts.items():
        here = {**at, "kind": kind, "position": position}
        right, asked = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        metrics.append(metric("occasions", here, sum(asked) / len(checked), None, len(checked)))
        if pairs:
            value, stderr = ratio_stderr(right, asked)
            metrics.append(metric("compliance", here, value, stderr, len(pairs)))
    for kind in sorted({kind for kind, _ in counts}):
        texts = [[(o.position, o.followed) for o in found if o.kind == kind] for found in checked]
        asked_texts = [np.array(text, dtype=float) for text in texts if text]
        fitted = clustered_slope(asked_texts)
        if fitted is not None:
            metrics.append(
                metric("compliance_slope", {**at, "kind": kind}, *fitted, len(asked_texts))
            )
    return metrics


def _samples(record: Record, found: Sequence[Compliance], at: dict[str, Any]) -> list[Sample]:
    return [
        {
            "id": f"{record.id}-{number}",
            "cluster": record.id,  # lines of one text are not independent
            "at": {**at, "kind": occasion.kind, "position": occasion.position},
            "compliance": float(occasion.followed),
        }
        for number, occasion in enumerate(found)
    ]
