"""Intervals and tests: a two-way bootstrap over seeds and samples, and Holm's correction.

All seeds of a variant are scored on the same samples, so seeds and samples are crossed, not nested:
one draw resamples the seeds and, once for all of them, the samples. With one seed it is the plain
bootstrap over samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 4000
LEVEL = 0.95
NORMAL_QUANTILE = 1.959963984540054  # two-sided 95 %

Scores = dict[str, tuple[float, int]]
"""Sample id -> (sum of its scores, number of scores): several scores of one id stay together."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; `method` says how the interval was made."""

    value: float
    low: float | None
    high: float | None
    n: int
    seeds: int
    method: str


def _arrays(seeds: Sequence[Scores]) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts, float64 [seeds, samples], over the union of ids (absent: zero counts)."""
    ids = sorted(set().union(*seeds))
    sums = np.array([[scores.get(i, (0.0, 0))[0] for i in ids] for scores in seeds], dtype=float)
    counts = np.array([[scores.get(i, (0.0, 0))[1] for i in ids] for scores in seeds], dtype=float)
    return sums, counts


def _weights(rng: np.random.Generator, size: int, draws: int) -> np.ndarray:
    """How often each of `size` things is drawn, float64 [draws, size]; one thing: always once."""
    if size == 1:
        return np.ones((draws, 1))
    drawn = rng.integers(0, size, (draws, size)) + size * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size).astype(float)


def _draw_means(sides: Sequence[Sequence[Scores]], rng: np.random.Generator) -> list[np.ndarray]:
    """Bootstrap means of each side, [draws] each, with the same seeds and samples in every side."""
    pooled = _arrays([scores for side in sides for scores in side])
    seeds, samples = len(sides[0]), pooled[0].shape[1]
    means: list[list[np.ndarray]] = [[] for _ in sides]
    for start in range(0, DRAWS, 500):  # blocks bound the memory: 500 x samples numbers at a time
        draws = min(500, DRAWS - start)
        by_seed, by_sample = _weights(rng, seeds, draws), _weights(rng, samples, draws)
        for index in range(len(sides)):
            rows = slice(index * seeds, (index + 1) * seeds)
            total = (by_seed * (by_sample @ pooled[0][rows].T)).sum(1)
            count = (by_seed * (by_sample @ pooled[1][rows].T)).sum(1)
            means[index].append(total / np.maximum(count, 1e-300))
    return [np.concatenate(parts) for parts in means]


def _mean(seeds: Sequence[Scores]) -> float:
    sums, counts = _arrays(seeds)
    return float(sums.sum() / counts.sum())


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_of_samples(seeds: Sequence[Scores], seed: int = 0) -> Estimate:
    """Mean over all scores with a percentile interval from the two-way bootstrap.

    When every score is 0 or every score is 1 the bootstrap has no width, which would claim
    certainty: Wilson's interval over the sample ids is given then.
    """
    value = _mean(seeds)
    sums, counts = _arrays(seeds)
    n = int(counts.sum())
    if value in (0.0, 1.0) and np.array_equal(sums, value * counts):
        reach = NORMAL_QUANTILE**2 / (sums.shape[1] + NORMAL_QUANTILE**2)
        low, high = (0.0, reach) if value == 0 else (1 - reach, 1.0)
        return Estimate(value, low, high, n, len(seeds), "Wilson (all samples alike)")
    (draws,) = _draw_means([seeds], np.random.default_rng(seed))
    low, high = _interval(draws)
    over = "seeds and samples" if len(seeds) > 1 else "samples"
    return Estimate(value, low, high, n, len(seeds), f"bootstrap over {over}")


def mean_of_values(values: Sequence[float], stderrs: Sequence[float | None], n: int) -> Estimate:
    """Mean over seeds of ready numbers, with a normal interval.

    The samples are shared by the seeds, so their variance (the mean squared standard error) does
    not shrink with the number of seeds; the spread between seeds is added to it.
    """
    value = float(np.mean(values))
    known = [s for s in stderrs if s is not None]
    between = float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0
    if not known and len(set(values)) == 1:
        # One seed, or a number that the configuration decides: nothing to make an interval from.
        return Estimate(values[0], None, None, n, len(values), "none")
    within = float(np.mean(np.square(known))) if known else 0.0
    half = NORMAL_QUANTILE * float(np.sqrt(between + within))
    if not known:
        method = "normal, spread between seeds"
    else:
        method = "normal, standard error of samples" + (" and seeds" if len(values) > 1 else "")
    return Estimate(value, value - half, value + half, n, len(values), method)


@dataclass(frozen=True)
class Comparison:
    """Mean difference of two sides, its interval, and a two-sided p-value against `null`.

    `by_seed` has the difference in each seed, in the order of the seeds given.
    """

    effect: float
    low: float
    high: float
    p: float
    samples: int
    seeds: int
    by_seed: list[float]


@dataclass(frozen=True)
class Contrast:
    """What is compared: a weighted sum of means, or one mean as a share of another.

    With `relative` there are two means, and the value is weights[0] * (first / second - 1).
    """

    weights: tuple[float, ...]
    relative: bool = False

    def value(self, means_KX: np.ndarray) -> np.ndarray:
        """The contrast of K means, over any further axis X.

        Raises ValueError for a share of nothing.
        """
        if self.relative:
            if not means_KX[1].all():
                raise ValueError("the other side's value is 0, so there is no share of it")
            return np.asarray(self.weights[0] * (means_KX[0] / means_KX[1] - 1))
        return np.tensordot(np.array(self.weights), means_KX, 1)

    def gradient(self, means_K: np.ndarray) -> np.ndarray:
        """Derivative of the contrast by each mean."""
        if self.relative:
            first, second = means_K
            return self.weights[0] * np.array([1 / second, -first / second**2])
        return np.array(self.weights)


DIFFERENCE = Contrast((1.0, -1.0))


def slope(x: Sequence[float]) -> np.ndarray:
    """Weights whose sum over values at `x` is the slope of the least-squares line through them.

    Raises ValueError with fewer than two different `x`.
    """
    centred = np.array(x, dtype=float) - np.mean(x)
    if not centred.any():
        raise ValueError(f"a trend needs two places or more; found {len(x)}")
    return np.asarray(centred / (centred**2).sum())


def paired(
    sides: Sequence[Sequence[Scores]], null: float, contrast: Contrast = DIFFERENCE
) -> Comparison:
    """Compare sides by their scores, seeds paired by position, samples by their ids.

    `sides` has as many entries as the contrast has weights: the favoured side at each place, then
    the other side at each place; a place counts the samples that both sides have there. The
    p-value is twice the smaller share of bootstrap contrasts on either side of `null`. Raises
    ValueError if the two sides of a place have no sample in common.
    """
    half, seeds = len(sides) // 2, len(sides[0])
    kept: list[list[Scores]] = [[] for _ in sides]
    ids: set[str] = set()
    for place in range(half):
        both = (place, place + half)
        common = set.intersection(*(set(scores) for n in both for scores in sides[n]))
        if not common:
            raise ValueError("the two sides have no sample in common")
        ids |= common
        for n in both:
            kept[n] = [{i: scores[i] for i in common} for scores in sides[n]]
    draws = contrast.value(np.array(_draw_means(kept, np.random.default_rng(0))))
    effect = float(contrast.value(np.array([_mean(side) for side in kept])))
    single = np.array([[_mean([scores]) for scores in side] for side in kept])
    low, high = _interval(draws)
    p = _p_value(draws, null)
    return Comparison(effect, low, high, p, len(ids), seeds, _by_seed(contrast, single))


def unpaired(
    values: Sequence[Sequence[float]],
    errors: Sequence[Sequence[float]],
    null: float,
    samples: int,
    contrast: Contrast = DIFFERENCE,
) -> Comparison:
    """Compare sides by (value, standard error) of each seed, with a normal interval.

    For metrics that are no mean over samples. The errors of the sides are taken as independent,
    which is too wide, never too narrow, where both saw the same samples. Without any error and
    spread (computed numbers) the p-value is 0 or, at `null` itself, 1.
    """
    value_KS, error_KS = np.array(values, dtype=float), np.array(errors, dtype=float)
    means_K = value_KS.mean(1)
    effect = float(contrast.value(means_K))
    gradient_K = contrast.gradient(means_K)
    variance = float((gradient_K**2 * (error_KS**2).mean(1)).sum())
    seeds = value_KS.shape[1]
    if seeds > 1:
        variance += float((gradient_K**2 * value_KS.var(1, ddof=1)).sum()) / seeds
    error = math.sqrt(variance)
    distance = abs(effect - null)
    p = math.erfc(distance / error / math.sqrt(2)) if error else float(distance == 0)
    half = NORMAL_QUANTILE * error
    each = _by_seed(contrast, value_KS)
    return Comparison(effect, effect - half, effect + half, p, samples, seeds, each)


def _by_seed(contrast: Contrast, means_KS: np.ndarray) -> list[float]:
    """The contrast in each seed; nothing where one seed's share would be of nothing."""
    try:
        return [float(value) for value in contrast.value(means_KS)]
    except ValueError:
        return []


def _p_value(draws: np.ndarray, null: float) -> float:
    tail = min(int((draws <= null).sum()), int((draws >= null).sum()))
    return min(1.0, 2 * (tail + 1) / (len(draws) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of `p_values`, in their order."""
    adjusted: list[float] = [0.0] * len(p_values)
    running = 0.0
    order: Any = np.argsort(p_values, kind="stable")
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
