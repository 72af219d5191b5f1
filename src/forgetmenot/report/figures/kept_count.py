"""Learnable token eviction during training: what each head keeps, and what holds it there."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from forgetmenot.report.figures import style
from forgetmenot.report.lines import read_lines
from forgetmenot.report.names import Names
from forgetmenot.report.results import TRAIN, Result, Results

TITLES = {"lambda": "sparsity weight λ", "bias": "bias of the scores"}
HEIGHT = 1.9  # inches of a layer's row of panels


def draw(
    study: str, variant: Mapping[str, Any], results: Results, known: Names
) -> style.Drawn | None:
    """Kept count and lever of every layer and head of one variant (its first seed).

    One row a layer: kept tokens with the band that the controller aims at on the left, on the right
    lambda, or the bias of the scores. None if the variant has no such curve.
    """
    group = results.get(study, variant["name"], TRAIN)
    if not group:
        return None
    lines = [line for line in read_lines(group[0].directory / "curve.jsonl") if line.get("kept")]
    if not lines:
        return None
    steps = np.array([line["step"] for line in lines])
    layers, targets = _layers(group[0], len(lines[0]["kept"]))
    tolerate = group[0].manifest["spec"].get("train", {}).get("sparsity_tolerate", 0.95)
    lever = "lambda" if "lambda" in lines[0] else "bias"
    values = [line[lever] for line in lines]
    with style.look():
        figure = Figure(figsize=(style.WIDTH, HEIGHT * len(layers) + 0.5), layout="constrained")
        rows = figure.subplots(len(layers), 2, squeeze=False, sharex=True, sharey="col")
        for index, (left, right) in enumerate(rows):
            _heads(left, steps, np.array([line["kept"][index] for line in lines], dtype=float))
            _heads(right, steps, np.array([line[index] for line in values], dtype=float))
            _band(left, tolerate, targets[index])
            left.set_ylabel(f"layer {layers[index]}")
        rows[0, 0].set_title("kept tokens of a head", fontsize=10, loc="left")
        rows[0, 1].set_title(f"{TITLES[lever]} of a head", fontsize=10, loc="left")
        # a little below zero, so that lines at zero are seen
        rows[0, 0].set_ylim(bottom=-0.03 * rows[0, 0].get_ylim()[1])
        right_text = "Right: bias that the controller gives to the head's scores."
        if lever == "lambda":
            right_text = _logarithmic([right for _, right in rows], values)
        for axes in rows[-1]:
            axes.set_xlabel("training step")
        style.legend(figure)
        of = f"{known.variant(variant['name'])} ({known.study(study)})"
        title = f"Kept tokens during training: {of}"
        caption = (
            f"Seed {group[0].seed}. Thin lines: heads; thick: their mean. Left: tokens that a head "
            "scores to be kept, as the controller counts them (moving average); shaded: the band "
            f"from {tolerate:g} b to the target b. {right_text}"
        )
        return style.finish(figure, f"kept_count_{study}_{variant['name']}", title, caption)


def _logarithmic(panels: list[Axes], values: list[list[list[float]]]) -> str:
    """Logarithmic axes for lambda, which is 0 before the pressure starts; what to say of them."""
    least = min((w for line in values for heads in line for w in heads if w > 0), default=1.0)
    least = 10.0 ** math.floor(math.log10(least))  # a tick of the axis, clear of the one at 0
    for panel in panels:
        panel.set_yscale("symlog", linthresh=least, linscale=0.5)
    panels[0].set_ylim(bottom=-0.3 * least)
    return (
        "Right: weight of the sparsity term, which stays as it is inside the band; logarithmic "
        f"above {least:.1g}, linear below it to show zero."
    )


def _layers(result: Result, count: int) -> tuple[list[int], list[float | None]]:
    """Number of each layer that evicts, as the map of kept tokens has it, and its target b.

    Without a readable spec: 1, 2, ... and no targets.
    """
    target = result.manifest["spec"].get("train", {}).get("target_kept")
    try:
        spec = json.loads((result.directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        spec = {"layers": []}
    found = [(n, options) for n, (name, options) in enumerate(spec["layers"]) if name == "lte"]
    if len(found) != count:
        return list(range(1, count + 1)), [target] * count
    return [n for n, _ in found], [target or options["budget"] for _, options in found]


def _heads(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    """Lines of the heads of `values` [steps, heads] and of their mean."""
    for head in range(values.shape[1]):
        label = "head" if head == 0 else None
        axes.plot(steps, values[:, head], color=style.COLOURS[0], lw=0.8, alpha=0.6, label=label)
    axes.plot(steps, values.mean(1), color=style.COLOURS[1], lw=1.8, label="mean over heads")


def _band(axes: Axes, tolerate: float, target: float | None) -> None:
    """Shade the controller's aim; without a target there is none."""
    if target is None:
        return
    axes.axhspan(
        tolerate * target, target, color=style.COLOURS[2], alpha=0.35, lw=0, label="target"
    )
    axes.axhline(target, color=style.COLOURS[2], lw=0.8)
