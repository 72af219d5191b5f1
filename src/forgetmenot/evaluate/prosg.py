"""Prompt forgetting: what a model still knows of its prompt, by the tokens read since.

Protocol: prompt, then D body tokens, then one probe whose answer is a single word (ProSG
specification, section 6.8). Every probe starts from a copy of the state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from forgetmenot import model as models
from forgetmenot.data.prosg.evalset import Record, read_records
from forgetmenot.data.prosg.world import World
from forgetmenot.errors import UserError
from forgetmenot.evaluate.prosg_harm import harm_metrics, harm_samples
from forgetmenot.evaluate.prosg_rollout import Answers
from forgetmenot.evaluate.prosg_run import Run
from forgetmenot.evaluate.prosg_scores import (
    cell_metrics,
    cell_samples,
    paired_metrics,
    said,
)
from forgetmenot.evaluate.prosg_update import update_metrics
from forgetmenot.evaluate.results import (
    Metric,
    Sample,
    metric,
    require_vocabulary,
    write_results,
)


@dataclass(frozen=True)
class Options:
    """What to measure. Controls that a model does not allow are left out (docs/prosg-pf.md)."""

    split: Literal["iid", "new-pairs", "new-templates", "long", "dense", "rules-new"] = "iid"
    mode: Literal["neutral", "interfering", "real", "self", "task"] = "interfering"  # the body
    facts: list[int] | None = None  # facts per prompt; null = all that were built for the split
    distances: list[int] | None = None  # tokens since </prompt>, with 0; null = all that were built
    samples: int | None = None  # prompts per number of facts; null = all that were built
    batch_size: int = 32  # prompts per forward pass
    temperature: float = 0.0  # mode self: 0 = the best token; above 0 = drawn, from the seeds
    controls: list[
        Literal[
            "none",
            "wrong-prompt",
            "no-prompt",
            "wrong-update",
            "empty-update",
            "shuffled-update",
            "random-update",
            "no-update",
            "adapter-only",
            "prompt-twice",
            "refresh",
            "refeed",
            "ttt-1",
            "ttt-4",
            "ttt-16",
            "ttt-rank-1",
            "ttt-rank-4",
            "ttt-rank-16",
        ]
    ] = field(default_factory=lambda: ["none", "wrong-update", "wrong-prompt", "no-prompt"])
    every: int = 64  # refresh, refeed: after so many tokens of the body
    refresh_share: float = 0.5  # refresh: rho, the share of the prompt's memory
    ttt_rate: float = 0.3  # ttt: learning rate of the gradient steps
    ttt_rank: int = 4  # ttt-rank: rank of the change after the last step
    ttt_clip: float = 0.3  # ttt: largest |dW| / |W| of a target, as ProSG's `clip`
    general_tokens: int = 128  # general text read after each prompt, for the harm; 0 = none
    gradients: int = 0  # prompts whose true gradients the update is compared with
    example: bool = True  # tell the first prompt with the fewest facts, and what is said of it

    def __post_init__(self) -> None:
        if self.distances is not None and (
            self.distances != sorted(set(self.distances)) or self.distances[:1] != [0]
        ):
            raise ValueError(
                f"distances: found {self.distances}, allowed: ascending, beginning with 0"
            )
        lowest = {"batch_size": 1, "every": 1, "ttt_rank": 1, "gradients": 0, "temperature": 0}
        for key, low in lowest.items():
            if getattr(self, key) < low:
                raise ValueError(f"{key}: found {getattr(self, key)}, allowed: {low} or more")
        for key in ("ttt_rate", "ttt_clip"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key}: found {getattr(self, key)}, allowed: above 0")
        if not 0 < self.refresh_share < 1:
            raise ValueError(f"refresh_share: found {self.refresh_share}, allowed: between 0 and 1")
        if self.general_tokens < 0 or self.general_tokens == 1:
            raise ValueError(f"general_tokens: found {self.general_tokens}, allowed: 0, 2 or more")
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
    about: dict[str, str] = {"body": options.mode}
    if options.example:
        prompt = _records(data_dir, options, min(_facts(world, options)))[0].prompt
        about["prompt of the example"] = prompt.replace("\n", " ")
    write_results(out, "prosg", metrics, samples, about=about)


def measure(
    model: Any, world: World, data_dir: Path, options: Options, device: str
) -> tuple[list[Metric], list[Sample]]:
    """Metrics and scored probes of every number of facts and every control."""
    metrics: list[Metric] = []
    samples: list[Sample] = []
    for facts in _facts(world, options):
        records = _records(data_dir, options, facts)
        run = Run(model, world, records, _distances(records, options, data_dir), options, device)
        found: dict[str, Answers] = {}
        for control in options.controls:
            answers = run.answers(control)
            if answers is None:
                continue
            found[control] = answers
            at = {"facts": facts, "control": control}
            metrics += cell_metrics(world, records, answers, run.distances, at)
            samples += cell_samples(world, records, answers, run.distances, at)
        metrics += paired_metrics(records, found, run.distances, facts)
        metrics += [
            metric("session_floats", {"facts": facts, "control": control}, floats, None, 1)
            for control, floats in run.floats.items()
        ]
        nll = run.general()
        metrics += harm_metrics(facts, nll)
        samples += harm_samples(facts, records, nll)
        metrics += update_metrics(
            model, world, records, facts, options.batch_size, options.gradients, device
        )
        if options.example and "none" in found and facts == min(_facts(world, options)):
            metrics += said(world, records[0], found["none"], run.distances, facts)
    return metrics, samples


def _facts(world: World, options: Options) -> list[int]:
    built = world.settings["dense_facts" if options.split == "dense" else "facts"]
    return list(built if options.facts is None else options.facts)


def _records(data_dir: Path, options: Options, facts: int) -> list[Record]:
    return read_records(data_dir, options.split, options.mode, facts)[: options.samples]


def _distances(records: Sequence[Record], options: Options, data_dir: Path) -> list[int]:
    """The asked distances. Raises UserError when the records have no segment border there."""
    built = records[0].distances
    asked = built if options.distances is None else options.distances
    if not set(asked) <= set(built):
        raise UserError(
            f"distances: found {asked}; {data_dir} was built for split {options.split} with {built}"
        )
    return asked
