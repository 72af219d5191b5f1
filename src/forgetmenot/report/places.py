"""Axis values that a claim names by their meaning, as their numbers differ between scales."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from forgetmenot.report.names import Names
from forgetmenot.report.results import TRAIN, Above, Result, Results, axis_values, matches
from forgetmenot.report.spec import BEYOND_WINDOW, FIRST_FULL, LONGEST, RELATIVE_PLACES, Claim

Wanted = tuple[Sequence[Result], str, Mapping[str, Any]]
"""Results, a metric and the axis values asked of it."""


def is_relative(value: Any) -> bool:
    """Whether an axis value is one of the places that differ between scales."""
    return isinstance(value, str) and value in RELATIVE_PLACES


def resolve(
    at: Mapping[str, Any],
    claim: Claim,
    group: Sequence[Result],
    results: Results,
    known: Names,
) -> dict[str, Any]:
    """Axis values with "longest", "first-full" and "beyond-window" as numbers of this scale.

    Raises ValueError where the results have no such place.
    """
    return {
        axis: _place(axis, value, claim, group, results, known) if is_relative(value) else value
        for axis, value in at.items()
    }


def common(axis: str, sides: Sequence[Wanted]) -> list[Any]:
    """Values of `axis` that every seed of every side has for its metric, sorted."""
    found = [
        {
            entry["at"][axis]
            for entry in result.metrics
            if entry["metric"] == metric
            and axis in entry.get("at", {})
            and matches(entry["at"], at)
        }
        for group, metric, at in sides
        for result in group
    ]
    return sorted(set.intersection(*found)) if found else []


def _place(
    axis: str,
    value: str,
    claim: Claim,
    group: Sequence[Result],
    results: Results,
    known: Names,
) -> Any:
    windows, filled = _memory(claim.study, results)
    measured = axis_values(list(group), claim.metric, axis)
    # An axis that only the samples have (the distance of a needle, say) is not listed.
    if value == LONGEST and measured:
        return measured[-1]
    if value == BEYOND_WINDOW:
        if windows and (not measured or measured[-1] > max(windows)):
            return Above(max(windows))
        raise ValueError(
            f"no {axis} beyond the largest window ({max(windows)} tokens)"
            if windows
            else f"no model has a window{known.where(claim.study)}"
        )
    enough = [place for place in measured if place >= max(filled, default=0)]
    if value == FIRST_FULL and len(enough) > 1:
        return enough[0]
    raise ValueError(f"no two values of {axis} at which every window and budget is filled")


def _memory(study: str, results: Results) -> tuple[list[int], list[int]]:
    """Windows, and windows with budgets, of the token mixers of a study's models, in tokens."""
    windows, filled = [], []
    for (name, _, task), group in results.found.items():
        if (name, task) != (study, TRAIN):
            continue
        config = group[0].directory / "config.json"
        spec = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        for _, options in spec.get("layers", []):
            if options.get("window") is not None:
                windows.append(options["window"])
                filled.append(options["window"] + (options.get("budget") or 0))
    return windows, filled
