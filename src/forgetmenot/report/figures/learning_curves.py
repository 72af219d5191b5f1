"""Training loss over tokens, one line a variant."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from forgetmenot.report.figures import style
from forgetmenot.report.lines import read_lines
from forgetmenot.report.results import TRAIN, Results

POINTS = 200


def draw(
    study: str, config: Mapping[str, Any], results: Results, styles: Mapping[str, int]
) -> style.Drawn | None:
    """Learning curves of one study; None if nothing was trained. `styles` numbers the looks."""
    with style.look():
        figure, (axes,) = style.panels(1, 3.6)
        for variant in config["variants"]:
            group = results.get(study, variant["name"], TRAIN)
            curves = [read_lines(result.directory / "curve.jsonl") for result in group]
            curves = [curve for curve in curves if curve]  # imported weights have none
            if not curves:
                continue
            shortest = min(curve[-1]["tokens"] for curve in curves)
            tokens = np.linspace(0, shortest, POINTS)
            losses = np.array([_smooth(curve, tokens) for curve in curves])
            kind = style.line_style(styles[variant["name"]]) | {"markevery": POINTS // 8}
            axes.plot(tokens / 1e6, losses.mean(0), label=variant.get("label"), **kind)
            if len(curves) > 1:
                ends = losses.min(0), losses.max(0)
                axes.fill_between(tokens / 1e6, *ends, color=kind["color"], alpha=0.15, lw=0)
        if not axes.lines:
            return None
        axes.set(xlabel="training tokens (millions)", ylabel="loss (nats per scored token)")
        axes.set_ylim(bottom=0)
        style.legend(figure)
        title = f"Learning curves: {config.get('title') or study}"
        caption = (
            "Training loss, averaged over a sliding window of a fiftieth of the run. "
            "Line: mean over seeds; band: lowest to highest seed, where there are several."
        )
        return style.finish(figure, f"learning_curves_{study}", title, caption)


def _smooth(curve: list[dict[str, Any]], tokens: np.ndarray) -> np.ndarray:
    """Loss at the given token counts, means over a centred window of a fiftieth of the run."""
    seen = np.array([line["tokens"] for line in curve], dtype=float)
    losses = np.array([line["loss"] for line in curve], dtype=float)
    width = max(1, len(losses) // 50)
    kernel = np.ones(width)
    smooth = np.convolve(losses, kernel, "same") / np.convolve(np.ones_like(losses), kernel, "same")
    found: np.ndarray = np.interp(tokens, seen, smooth)
    return found
