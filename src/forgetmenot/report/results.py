"""Reads result folders: metrics, samples, curves and manifests. Never reads the tracking store.

A folder that is absent or unreadable becomes one entry of `Results.missing`; it never stops a
report and is never passed over silently.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from forgetmenot.report import training
from forgetmenot.report.stats import Scores

TRAIN = "train"


def matches(at: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether the axis values `at` agree with every wanted value (a list: any of its values)."""
    return all(
        key in at and (at[key] in value if isinstance(value, list) else at[key] == value)
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

    @property
    def untrained(self) -> bool:
        """Whether these are weights that were not trained here."""
        return self.task == TRAIN and self.manifest.get("stage") != TRAIN

    @property
    def anchor(self) -> str:
        """Name of this model's and task's place in the page's list of runs."""
        return f"run-{self.study}-{self.variant}-{self.task}"

    @cached_property
    def _samples(self) -> list[dict[str, Any]]:
        return read_lines(self.directory / "samples.jsonl")

    def scores(self, metric: str, at: Mapping[str, Any]) -> Scores:
        """Sums and counts of `metric` by independent sample, where the axes agree with `at`.

        The independent sample is the line's `cluster` (questions of one prompt, say), else its id.
        """
        found: Scores = {}
        for line in self._samples:
            if line.get(metric) is None or not matches(line.get("at", {}), at):
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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines of a file; a missing file has none."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


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
                trained = manifest.get("stage") == TRAIN
                metrics = training.metrics(directory, trained, contexts)
            else:
                metrics = json.loads((directory / "results.json").read_text())["metrics"]
        except (OSError, ValueError, KeyError) as error:
            results.missing.append(f"{key}: {describe(error, directory)}")
            continue
        number = int(seed.removeprefix("seed"))
        result = Result(study, variant, number, task, directory, metrics, manifest)
        results.found.setdefault((study, variant, task), []).append(result)
    return results


def describe(error: Exception, directory: Path) -> str:
    """One line that names the file and what is wrong with it."""
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} does not exist"
    return f"{directory}: {type(error).__name__}: {error}"


def axis_values(results: list["Result"], metric: str, axis: str) -> list[Any]:
    """Every value that `axis` takes for `metric`, sorted, numbers before texts."""
    found = {
        entry["at"][axis]
        for result in results
        for entry in result.metrics
        if entry["metric"] == metric and axis in entry.get("at", {})
    }
    return sorted(found, key=lambda v: (isinstance(v, str), v))


def text(group: list[Result], metric: str, at: Mapping[str, Any]) -> str:
    """The text that every seed has for `metric` (a model's kind, say); empty if it has none."""
    found = {
        entry["value"]
        for result in group
        for entry in result.metrics
        if entry["metric"] == metric and entry.get("at", {}) == dict(at)
    }
    return ", ".join(sorted(value for value in found if isinstance(value, str)))


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
