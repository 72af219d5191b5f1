"""Prompt forgetting: what a model still knows of its prompt, by the tokens read since.

Protocol: prompt, then D body tokens, then one probe whose answer is a single word (ProSG
specification, section 6.8). Every probe starts from a copy of the state.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from forgetmenot import model as models
from forgetmenot.data.prosg.evalset import Record, read_records
from forgetmenot.data.prosg.world import World
from forgetmenot.errors import UserError
from forgetmenot.evaluate.prosg_rollout import Answers, controlled_state, roll_out
from forgetmenot.evaluate.prosg_scores import cell_metrics, cell_samples
from forgetmenot.evaluate.results import Metric, Sample, require_vocabulary, write_results


@dataclass(frozen=True)
class Options:
    """What to measure. "wrong-update" and "no-update" are left out for models without an update."""

    split: Literal["iid", "new-pairs", "new-templates", "long", "dense", "rules-new"] = "iid"
    mode: Literal["neutral", "interfering"] = "interfering"  # what the body is made of
    facts: list[int] | None = None  # facts per prompt; null = all that were built for the split
    distances: list[int] | None = None  # tokens since </prompt>, with 0; null = all that were built
    samples: int | None = None  # prompts per number of facts; null = all that were built
    batch_size: int = 32  # prompts per forward pass
    controls: list[Literal["none", "wrong-update", "no-update", "wrong-prompt", "no-prompt"]] = (
        field(default_factory=lambda: ["none", "wrong-update", "wrong-prompt", "no-prompt"])
    )

    def __post_init__(self) -> None:
        if self.distances is not None and (
            self.distances != sorted(set(self.distances)) or self.distances[:1] != [0]
        ):
            raise ValueError(
                f"distances: found {self.distances}, allowed: ascending, beginning with 0"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size: found {self.batch_size}, allowed: 1 or more")
        if self.samples is not None and self.samples < 2:
            raise ValueError(f"samples: found {self.samples}, allowed: 2 or more, or null")
        if not self.controls or (self.facts is not None and not self.facts):
            raise ValueError("controls, facts: found an empty list, allowed: at least one entry")


def evaluate(model_dir: Path, data_dir: Path, options: Options, out: Path, device: str) -> None:
    """Write results.json and samples.jsonl; metrics and their axes are listed in docs/prosg-pf.md.

    Raises UserError when the folder lacks an asked cell or the vocabularies differ.
    """
    world = World.load(data_dir)
    model = models.load(model_dir).to(device)
    require_vocabulary(model, len(world.tokens), data_dir)
    metrics, samples = measure(model, world, data_dir, options, device)
    write_results(out, "prosg", metrics, samples)


def measure(
    model: Any, world: World, data_dir: Path, options: Options, device: str
) -> tuple[list[Metric], list[Sample]]:
    """Metrics and scored probes of every number of facts and every control."""
    metrics: list[Metric] = []
    samples: list[Sample] = []
    for facts in _facts(world, options):
        records = read_records(data_dir, options.split, options.mode, facts)[: options.samples]
        distances = _distances(records, options, data_dir)
        for control in options.controls:
            answers = _answers(model, world, records, control, distances, options, device)
            if answers is None:
                continue
            at = {"facts": facts, "control": control}
            metrics += cell_metrics(world, records, answers, distances, at)
            samples += cell_samples(world, records, answers, distances, at)
    return metrics, samples


def _facts(world: World, options: Options) -> Iterable[int]:
    built = world.settings["dense_facts" if options.split == "dense" else "facts"]
    return built if options.facts is None else options.facts


def _distances(records: Sequence[Record], options: Options, data_dir: Path) -> list[int]:
    """The asked distances. Raises UserError when the records have no segment border there."""
    built = records[0].distances
    asked = built if options.distances is None else options.distances
    if not set(asked) <= set(built):
        raise UserError(
            f"distances: found {asked}; {data_dir} was built for split {options.split} with {built}"
        )
    return asked


def _answers(
    model: Any, world: World, records: Sequence[Record], control: str, distances: list[int],
    options: Options, device: str,
) -> Answers | None:  # fmt: skip
    """Answers of all records under one control; None when it does not apply to the model."""
    batches: list[Answers] = []
    others = [*records[1:], records[0]]
    with torch.inference_mode():
        for start in range(0, len(records), options.batch_size):
            rows = slice(start, start + options.batch_size)
            state = controlled_state(control, model, world, records[rows], others[rows], device)
            if state is None:
                return None
            batches.append(roll_out(model, world, records[rows], state, distances, device))
    names = Answers.__dataclass_fields__
    return Answers(**{name: np.concatenate([getattr(b, name) for b in batches]) for name in names})
