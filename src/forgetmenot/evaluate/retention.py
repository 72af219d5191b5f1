"""Retention of what was captured: numbers derived from accuracy over distance.

ProSG specification, sections 6.0 (capture and retention are separate) and 6.8 (metrics).
All functions take curves of any number of rows [..., D], so that a bootstrap is one call.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 1000
SHARES = {"retention", "aufc", "half_distance"}  # of what was captured


def retention(accuracy_RD: np.ndarray, chance: float) -> np.ndarray:
    """R(D) = (acc(D) - c) / (acc(0) - c); the first column is distance 0.

    NaN where acc(0) is not above chance: nothing was captured that could be retained.
    """
    captured = accuracy_RD[..., :1] - chance
    return np.asarray((accuracy_RD - chance) / np.where(captured > 0, captured, np.nan))


def area_under_forgetting_curve(distances: np.ndarray, retention_RD: np.ndarray) -> np.ndarray:
    """AUFC: mean of R over log2 D, trapezoids over the distances above 0. 1 = nothing forgotten."""
    x, y = np.log2(distances[distances > 0]), retention_RD[..., distances > 0]
    mean = np.trapezoid(y, x, axis=-1) / (x[-1] - x[0]) if len(x) > 1 else y[..., 0]
    return np.asarray(mean)


def half_distance(distances: np.ndarray, retention_RD: np.ndarray) -> np.ndarray:
    """Distance at which R first falls to 1/2, linear in log2(1 + D) between the distances.

    The longest distance where R never falls so far (a lower bound); NaN where R is NaN.
    """
    x = np.log2(1.0 + distances)
    below = retention_RD <= 0.5
    after = np.where(below.any(-1), below.argmax(-1), len(x) - 1)[..., None]
    y1 = np.take_along_axis(retention_RD, after, -1)
    y0 = np.take_along_axis(retention_RD, np.maximum(after - 1, 0), -1)
    x0, x1 = x[np.maximum(after - 1, 0)], x[after]
    fallen = y1 <= 0.5
    share = np.where(fallen, (y0 - 0.5) / np.where(fallen & (y0 > y1), y0 - y1, 1.0), 1.0)
    result = 2.0 ** (x0 + share * (x1 - x0)) - 1.0
    return np.where(np.isnan(retention_RD[..., 0]), np.nan, result[..., 0])


@dataclass(frozen=True)
class Curve:
    """Answers of one item kind. right float [P, D]: right answers per prompt; asked [P]: questions.

    right_again [P, D]: right at D among those that were right at distance 0.
    """

    distances: np.ndarray
    right: np.ndarray
    right_again: np.ndarray
    asked: np.ndarray
    chance: float

    def derived(self, weight_RP: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics by name: retention and retention_given_capture [R, D], the others [R]."""
        right_RD = weight_RP @ self.right
        accuracy_RD = right_RD / (weight_RP @ self.asked)[:, None]
        curve_RD = retention(accuracy_RD, self.chance)
        captured_R1 = right_RD[:, :1]
        again_RD = weight_RP @ self.right_again
        values = {
            "capture": accuracy_RD[:, 0],
            "retention": curve_RD,
            "retention_given_capture": again_RD / np.where(captured_R1 > 0, captured_R1, np.nan),
        }
        if len(self.distances) > 1:
            values["aufc"] = area_under_forgetting_curve(self.distances, curve_RD)
            values["half_distance"] = half_distance(self.distances, curve_RD)
        return values

    def estimates(self, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Each derived value with its standard error from a bootstrap over prompts (fixed seed).

        NaN where a value is undefined; resamples in which it is undefined do not count. Shares of
        the capture are undefined where it is within two standard errors of chance, too: they would
        be quotients of noise.
        """
        prompts = np.flatnonzero(self.asked)
        rng = np.random.Generator(np.random.Philox(key=seed))
        weight_RP = np.zeros((DRAWS, len(self.asked)))
        weight_RP[:, prompts] = rng.multinomial(
            len(prompts), np.full(len(prompts), 1 / len(prompts)), size=DRAWS
        )
        once = self.derived(np.ones((1, len(self.asked))))
        spread = self.derived(weight_RP)
        error = np.nan_to_num(_spread(spread["capture"]))
        if once["capture"][0] - 2 * error <= self.chance:
            for name in SHARES.intersection(once):
                once[name] = np.full_like(once[name], np.nan)
        return {name: (value[0], _spread(spread[name])) for name, value in once.items()}


def _spread(values_R: np.ndarray) -> np.ndarray:
    """Standard deviation over the resamples in which the value is defined; NaN below two."""
    defined = np.isfinite(values_R)
    n = defined.sum(0)
    mean = np.where(defined, values_R, 0.0).sum(0) / np.maximum(n, 1)
    square = np.where(defined, (values_R - mean) ** 2, 0.0).sum(0)
    return np.where(n > 1, np.sqrt(square / np.maximum(n - 1, 1)), np.nan)


def clustered_slope(clusters: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """Least-squares slope of y over x and its standard error, points of a cluster not independent.

    Each cluster holds points [n, 2] of (x, y). None with fewer than two clusters or values of x.
    """
    if len(clusters) < 2:
        return None
    x, y = np.concatenate(clusters).T
    spread = ((x - x.mean()) ** 2).sum()
    if spread == 0:
        return None
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    residual = y - y.mean() - slope * (x - x.mean())
    ends = np.cumsum([len(points) for points in clusters])[:-1]
    sums = np.array([part.sum() for part in np.split((x - x.mean()) * residual, ends)])
    variance = (sums**2).sum() * len(clusters) / (len(clusters) - 1)
    return float(slope), float(np.sqrt(variance) / spread)
