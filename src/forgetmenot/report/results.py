"""Reads result folders: metrics, samples, curves and manifests. Never reads the tracking store.

A folder that is absent or unreadable becomes one entry of `Results.missing`; it never stops a
report and is never passed over silently.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from forgetmenot.report import training
from forgetmenot.report.lines import read_lines
from forgetmenot.report.stats import Scores

TRAIN = "train"


@dataclass(frozen=True)
class Above:
    """All axis values above a limit, where a list of values may stand."""

    limit: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and value > self.limit


def matches(at: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether the axis values `at` agree with every wanted value (several: any of them)."""
    return all(
        key in at and (at[key] in value if isinstance(value, list | Above) else at[key] == value)
        for key, value in wanted.items()
    )


@dataclass(frozen=True)
class Result:
    """One task of one model (study, variant, seed); task `train` is the model itself."""

    study: str
    variant: str
    seed: int
    task: str
    directory: Path
    metrics: list[dict[str, Any]]
    manifest: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)  # what was scored, beyond the axes
    skips: list[dict[str, Any]] = field(default_factory=list)  # what was not: its axes, and why

    @property
    def untrained(self) -> bool:
        """Whether these are weights that were not trained here."""
        return self.task == TRAIN and self.manifest.get("stage") != TRAIN

    @property
    def anchor(self) -> str:
        """Name of this model's and task's place in the page's list of runs."""
        return f"run-{self.study}-{self.variant}-{self.task}"

    @cached_property
    def _samples(self) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """The lines by their axis values, so that these are compared once for many lines."""
        found: dict[tuple[Any, ...], tuple[dict[str, Any], list[dict[str, Any]]]] = {}
        for line in read_lines(self.directory / "samples.jsonl"):
            at = _axes(line)
            found.setdefault(tuple(at.items()), (at, []))[1].append(line)
        return list(found.values())

    def scores(self, metric: str, at: Mapping[str, Any]) -> Scores:
        """Sums and counts of `metric` by independent sample, where the axes agree with `at`.

        The independent sample is the line's `cluster` (questions of one prompt, say), else its id.
        """
        found: Scores = {}
        chosen = (lines for place, lines in self._samples if matches(place, at))
        for line in chain.from_iterable(chosen):
            if line.get(metric) is None:
                continue
            # The same id at another axis value is another measurement of the same thing, so it
            # stays together with it: the bootstrap draws ids.
            unit = str(line.get("cluster", line["id"]))
            total, count = found.get(unit, (0.0, 0))
            found[unit] = (total + float(line[metric]), count + 1)
        return found


@dataclass
class Results:
    """All results of one scale, by (study, variant, task), in the order of the seeds."""

    found: dict[tuple[str, str, str], list[Result]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def get(self, study: str, variant: str, task: str) -> list[Result]:
        """The results of one variant and task, one a seed; an empty list if there is none."""
        return self.found.get((study, variant, task), [])

    def all(self) -> list[Result]:
        """Every result, ordered by study, variant, task and seed as they were given."""
        return [result for group in self.found.values() for result in group]


def _axes(line: Mapping[str, Any]) -> dict[str, Any]:
    """A sample's axis values; with those of a needle also its distance from the end, in tokens."""
    at = dict(line.get("at", {}))
    if {"length", "depth"} <= set(at) and "distance" not in at:
        tokens = line.get("tokens") or at["length"]
        at["distance"] = round(tokens * (100 - at["depth"]) / 100)
    return at


def load(
    tasks: Mapping[str, str], trains: Mapping[str, str], contexts: Sequence[int] = ()
) -> Results:
    """Load folders given as {"<study>/<variant>/seed<k>[/<task>]": folder}.

    `trains` are the folders of weights, trained here or imported (the manifest's stage tells). With
    `contexts` (tokens) each also gets the metrics of its cost.
    """
    results = Results()
    folders = [(f"{key}/{TRAIN}", folder) for key, folder in trains.items()]
    for key, folder in [*folders, *tasks.items()]:
        study, variant, seed, task = key.split("/")
        directory = Path(folder)
        try:
            manifest = json.loads((directory / "manifest.json").read_text())
            if task == TRAIN:
                found: dict[str, Any] = {"metrics": training.metrics(directory, manifest, contexts)}
            else:
                found = json.loads((directory / "results.json").read_text())
            metrics, about = found["metrics"], found.get("about") or {}
        except (OSError, ValueError, KeyError) as error:
            results.missing.append(f"{key}: {describe(error, directory)}")
            continue
        number = int(seed.removeprefix("seed"))
        skips = found.get("skipped") or []
        result = Result(study, variant, number, task, directory, metrics, manifest, about, skips)
        results.found.setdefault((study, variant, task), []).append(result)
    return results


def describe(error: Exception, directory: Path) -> str:
    """One line that names the file and what is wrong with it."""
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} does not exist"
    return f"{directory}: {type(error).__name__}: {error}"


def axis_values(results: list["Result"], metric: str, axis: str) -> list[Any]:
    """Every value that `axis` takes for `metric` or where it was skipped, numbers before texts."""
    found = {
        entry["at"][axis]
        for result in results
        for entry in [*result.metrics, *result.skips]
        if entry.get("metric", metric) == metric and axis in entry.get("at", {})
    }
    return sorted(found, key=lambda v: (isinstance(v, str), v))


def skipped(group: list[Result], at: Mapping[str, Any]) -> str:
    """Why nothing was scored at `at`; empty if something was, or nobody says."""
    reasons = {
        skip["reason"] for result in group for skip in result.skips if matches(at, skip["at"])
    }
    return "; ".join(sorted(reasons))


def text(group: list[Result], metric: str, at: Mapping[str, Any]) -> str:
    """The text that every seed has for `metric` (a model's kind, say); empty if it has none."""
    found = {
        entry["value"]
        for result in group
        for entry in result.metrics
        if entry["metric"] == metric and entry.get("at", {}) == dict(at)
    }
    return ", ".join(sorted(value for value in found if isinstance(value, str)))


def pooled(
    group: Sequence[Result], metric: str, at: Mapping[str, Any], computed: bool = False
) -> tuple[list[float], list[float], int] | None:
    """Value and standard error of each seed, means over the entries at `at`, and how many samples.

    None if a seed has no such entry with an error; `computed` numbers need none. Entries of
    different axis values have samples of their own.
    """
    found, errors, n = [], [], 0
    for result in group:
        entries = [
            entry
            for entry in result.metrics
            if entry["metric"] == metric
            and matches(entry.get("at", {}), at)
            and isinstance(entry["value"], int | float)
            and (computed or entry.get("stderr") is not None)
        ]
        if not entries:
            return None
        spread = [entry.get("stderr") or 0.0 for entry in entries]
        found.append(statistics.fmean(entry["value"] for entry in entries))
        errors.append(math.hypot(*spread) / len(entries))
        n += sum(entry["n"] for entry in entries)
    return found, errors, n


def values(
    group: list[Result], metric: str, at: Mapping[str, Any]
) -> tuple[list[float], list[float | None], int]:
    """Per-seed value and standard error of the entry whose axes are exactly `at`, and the total n.

    A seed without such an entry, or with null, a text or a number that is not finite, is left out.
    """
    found, stderrs, n = [], [], 0
    for result in group:
        for entry in result.metrics:
            if entry["metric"] != metric or entry.get("at", {}) != dict(at):
                continue
            value = entry["value"]
            if value is not None and not isinstance(value, str) and math.isfinite(value):
                found.append(float(value))
                stderrs.append(entry.get("stderr"))
                n += int(entry.get("n") or 0)
    return found, stderrs, n
