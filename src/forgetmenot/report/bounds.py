"""Where the values of a metric end, so that no interval reaches what cannot be."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from forgetmenot.report.results import Result, axis_values
from forgetmenot.report.spec import DISTANCES, SHARES, Column
from forgetmenot.report.stats import Estimate

Ends = tuple[float | None, float | None]


def cut(
    estimate: Estimate, column: Column, sources: Sequence[Result], at: Mapping[str, Any]
) -> Estimate:
    """The estimate of `column` at `at` with its interval cut where its values end.

    `sources` are the results of the seeds that it is the mean of.
    """
    if estimate.low is None or estimate.high is None:
        return estimate
    low, high = _ends(column, sources, at)
    return replace(
        estimate,
        low=estimate.low if low is None else max(low, estimate.low),
        high=estimate.high if high is None else min(high, estimate.high),
    )


def _ends(column: Column, sources: Sequence[Result], at: Mapping[str, Any]) -> Ends:
    if column.bounds == DISTANCES:
        return 0.0, max(axis_values(list(sources), "retention", "distance"), default=None)
    if isinstance(column.bounds, list):
        return column.bounds[0], column.bounds[1]
    return _shares(sources, at) if column.bounds == SHARES else (None, None)


def _shares(sources: Sequence[Result], at: Mapping[str, Any]) -> Ends:
    """What accuracies of 0 and 1 would give as shares of the capture c above chance k.

    (0 - k) / (c - k) and (1 - k) / (c - k), means over the seeds. The second is more than 1 unless
    the capture is 1: a model may be right more often later than right after the prompt.
    """
    prompt = {key: value for key, value in at.items() if key != "distance"}
    captures = [_numbers(result, "capture").get(_key(prompt)) for result in sources]
    chance = _chance(sources, at.get("kind"))
    if chance is None or not captures:
        return None, None
    lows, highs = [], []
    for capture in captures:
        if capture is None or capture <= chance:
            return None, None
        lows.append(-chance / (capture - chance))
        highs.append((1 - chance) / (capture - chance))
    return statistics.fmean(lows), statistics.fmean(highs)


def _chance(sources: Sequence[Result], kind: Any) -> float | None:
    """Chance k of a kind of question, which R = (a - k) / (c - k) gives where a is not c.

    From the R farthest from 1, where rounding counts least; None if all are 1.
    """
    found = []
    for result in sources:
        captures, accuracies = _numbers(result, "capture"), _numbers(result, "accuracy")
        for key, share in _numbers(result, "retention").items():
            capture = captures.get(frozenset(pair for pair in key if pair[0] != "distance"))
            if ("kind", kind) not in key or capture is None or key not in accuracies:
                continue
            if share != 1:
                found.append((abs(share - 1), (accuracies[key] - share * capture) / (1 - share)))
    return max(found)[1] if found else None


def _numbers(result: Result, metric: str) -> dict[frozenset[Any], float]:
    """Values of a metric by their axis values."""
    return {
        _key(entry["at"]): float(entry["value"])
        for entry in result.metrics
        if entry["metric"] == metric and isinstance(entry["value"], int | float)
    }


def _key(at: Mapping[str, Any]) -> frozenset[Any]:
    return frozenset(at.items())
