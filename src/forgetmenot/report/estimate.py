"""One number of a table: what it rests on, its interval, and the test of one against another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forgetmenot.report.results import Result, pooled, values
from forgetmenot.report.stats import (
    Estimate,
    Scores,
    holm,
    mean_of_samples,
    mean_of_values,
    paired,
    unpaired,
)

ALPHA = 0.05
MARKS = (
    "Bold: best of its column, with all that do not differ from it; underlined: second best, "
    "likewise. Test: paired bootstrap over seeds and samples (where a number is no mean of "
    "samples, a normal test on standard errors), two-sided at 5 %, Holm-adjusted within a column; "
    "no mark where nothing differs."
)


@dataclass(frozen=True)
class Evidence:
    """Per seed: value, standard error and, where the value is their mean, the samples' scores."""

    values: dict[int, tuple[float, float | None]]
    n: int
    scores: dict[int, Scores]


def gather(
    sources: Sequence[Result], metric: str, at: Mapping[str, Any], pool: bool = False
) -> Evidence | None:
    """What the results say about a metric at some axis values; None if they have no number.

    With `pool` it is the mean over all entries that agree with `at`, else the entry at exactly
    `at`. Samples count only if their mean is the number and the evaluator counted as many.
    """
    found: dict[int, tuple[float, float | None]] = {}
    n, scores = 0, {}
    for result in sources:
        ready = _pooled(result, metric, at) if pool else values([result], metric, at)
        if ready is None or not ready[0]:
            continue
        found[result.seed] = (ready[0][0], ready[1][0])
        n += ready[2]
        samples = result.scores(metric, at)
        if samples and len(samples) == ready[2] and _is_mean(samples, ready[0][0]):
            scores[result.seed] = samples
    if not found:
        return None
    return Evidence(found, n, scores if len(scores) == len(found) else {})


def _pooled(
    result: Result, metric: str, at: Mapping[str, Any]
) -> tuple[list[float], list[float | None], int] | None:
    """As `values`, over all entries that agree with `at`; no error if one of them has none."""
    with_errors = pooled([result], metric, at)
    whole = pooled([result], metric, at, computed=True)
    if whole is None:
        return None
    return whole[0], [None] if with_errors is None else [*with_errors[1]], whole[2]


def _is_mean(scores: Scores, value: float) -> bool:
    mean = sum(total for total, _ in scores.values()) / sum(count for _, count in scores.values())
    return abs(mean - value) <= 1e-6 * max(1.0, abs(value))


def estimate(evidence: Evidence) -> Estimate:
    """Mean over seeds: bootstrap where samples carry it, else a normal interval."""
    if evidence.scores:
        return mean_of_samples(list(evidence.scores.values()))
    numbers = list(evidence.values.values())
    return mean_of_values([v for v, _ in numbers], [e for _, e in numbers], evidence.n)


def marks(cells: Sequence[Evidence | None], sign: float) -> list[str]:
    """The mark of each number of a column: best, second, or none. `sign` -1: lower is better."""
    known = {n: cell for n, cell in enumerate(cells) if cell is not None}
    order = sorted(known, key=lambda n: -sign * _mean(known[n]))
    found = [""] * len(cells)
    best = _tied(order, known)
    if len(best) == len(order):
        return found
    rest = [n for n in order if n not in best]
    second = _tied(rest, known) if len(order) > 2 else []
    for n in order:
        found[n] = "best" if n in best else "second" if n in second else ""
    return found


def _mean(evidence: Evidence) -> float:
    return sum(value for value, _ in evidence.values.values()) / len(evidence.values)


def _tied(order: Sequence[int], known: Mapping[int, Evidence]) -> list[int]:
    """The first of `order` and all others that do not differ from it."""
    adjusted = holm([_p(known[order[0]], known[n]) for n in order[1:]])
    return [order[0], *(n for n, p in zip(order[1:], adjusted, strict=True) if p >= ALPHA)]


def _p(one: Evidence, other: Evidence) -> float:
    """Two-sided p-value of their difference; 1 where nothing can be said about it."""
    seeds = sorted(set(one.values) & set(other.values))
    if not seeds:
        return 1.0
    if one.scores and other.scores:
        try:
            return paired([[side.scores[s] for s in seeds] for side in (one, other)], 0.0).p
        except ValueError:  # no sample in common
            return 1.0
    sides = [[side.values[seed] for seed in seeds] for side in (one, other)]
    if len(seeds) == 1 and any(error is None for side in sides for _, error in side):
        return 1.0
    means = [[value for value, _ in side] for side in sides]
    errors = [[error or 0.0 for _, error in side] for side in sides]
    return unpaired(means, errors, 0.0, one.n).p
