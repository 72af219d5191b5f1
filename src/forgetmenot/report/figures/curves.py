"""What the figures of learning curves share: reading, smoothing, a line with its band."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from forgetmenot.report.lines import read_lines
from forgetmenot.report.results import TRAIN, Results

POINTS = 200
SHARE = 50  # the window is so small a part of the run
Run = list[dict[str, Any]]
"""The lines of one training's curve."""


def read(study: str, config: Mapping[str, Any], results: Results) -> dict[str, list[Run]]:
    """The curves of every variant, one a seed; imported weights have none."""
    found = {}
    for variant in config["variants"]:
        group = results.get(study, variant["name"], TRAIN)
        runs = [read_lines(result.directory / "curve.jsonl") for result in group]
        found[variant["name"]] = [run for run in runs if run]
    return found


def plot(
    axes: Axes,
    runs: Sequence[Run],
    key: str,
    label: str,
    look: Mapping[str, Any],
    factor: float = 1.0,
) -> None:
    """Mean over seeds of one value of the curves; a band from the lowest seed to the highest.

    Nothing where no run has the value. A line of the curve that lacks it (no batch came from that
    source) is passed over.
    """
    known = [kept for run in runs if (kept := [line for line in run if key in line])]
    if not known:
        return
    start = max(run[0]["tokens"] for run in known)
    tokens = np.linspace(start, min(run[-1]["tokens"] for run in known), POINTS)
    values = factor * np.array([_smooth(run, key, tokens) for run in known])
    axes.plot(tokens / 1e6, values.mean(0), label=label, **{**look, "markevery": POINTS // 8})
    if len(known) > 1:
        ends = values.min(0), values.max(0)
        axes.fill_between(tokens / 1e6, *ends, color=look["color"], alpha=0.15, lw=0)


def _smooth(run: Run, key: str, tokens: np.ndarray) -> np.ndarray:
    """Values at the given token counts, means over a centred window of a SHARE-th of the run."""
    seen = np.array([line["tokens"] for line in run], dtype=float)
    values = np.array([line[key] for line in run], dtype=float)
    kernel = np.ones(max(1, len(values) // SHARE))
    smooth = np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")
    found: np.ndarray = np.interp(tokens, seen, smooth)
    return found
