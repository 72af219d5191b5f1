"""What each head kept of the needles, where the answer was right and where it was wrong."""

import json
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from forgetmenot.report import names
from forgetmenot.report.figures import style
from forgetmenot.report.names import Names
from forgetmenot.report.results import Result

HEIGHT = 1.3  # inches of a row of panels, and a little more for each layer
LAYER = 0.1


def draw(result: Result, known: Names) -> style.Drawn | None:
    """Rows are needle tasks, columns right and wrong answers; a panel is layer by head.

    Reads audit.json of the evaluator `niah_audit`, at the longest context; None if the folder has
    none, or no needle was out of the layers' reach.
    """
    path = result.directory / "audit.json"
    groups = json.loads(path.read_text())["groups"] if path.is_file() else []
    if not groups:
        return None
    longest = max(group["length"] for group in groups)
    shown = {(g["task"], g["answer"]): g for g in groups if g["length"] == longest}
    tasks = sorted({task for task, _ in shown})
    layers = list(next(iter(shown.values()))["layers"])
    with style.look():
        height = (HEIGHT + LAYER * len(layers)) * len(tasks) + 0.5
        figure = Figure(figsize=(style.WIDTH, height), layout="constrained")
        panels = figure.subplots(len(tasks), 2, squeeze=False, sharex=True, sharey=True)
        mesh: Any = None
        for row, task in zip(panels, tasks, strict=True):
            for axes, answer in zip(row, ("right", "wrong"), strict=True):
                group = shown.get((task, answer))
                mesh = _panel(axes, group["layers"] if group else {}, layers) or mesh
                count = group["n"] if group else 0
                axes.set_title(f"{names.value(task)}, {answer} ({count})", fontsize=9, loc="left")
            row[0].set_ylabel("layer", fontsize=9)
        for axes in panels[-1]:
            axes.set_xlabel("head", fontsize=9)
        bar = figure.colorbar(mesh, ax=panels.ravel().tolist(), shrink=0.8, pad=0.02)
        bar.set_label("kept (%)")
        caption = (
            f"Share of the needle's value tokens that a head still sees at the prompt's end, at "
            f"{longest} tokens, seed {result.seed}; in brackets: samples with a right or wrong "
            "answer. Needles in a window or among the sinks are left out. Grey: no sample."
        )
        of = f"{known.variant(result.variant)} ({known.study(result.study)})"
        title = f"Needles kept by layer and head: {of}"
        name = f"niah_audit_{result.study}_{result.variant}_seed{result.seed}"
        return style.finish(figure, name, title, caption)


def _panel(axes: Axes, shares: dict[str, list[float]], layers: list[str]) -> Any:
    """Draw the shares of one group; None if there are none."""
    axes.set_facecolor("0.85")
    axes.grid(False)
    axes.set_yticks(np.arange(len(layers)) + 0.5, layers, fontsize=8)
    axes.set_ylim(len(layers), 0)
    if not shares:
        return None
    values = 100 * np.array([shares[layer] for layer in layers])
    heads = range(0, values.shape[1], max(1, values.shape[1] // 8))
    axes.set_xticks([head + 0.5 for head in heads], [str(head) for head in heads], fontsize=8)
    return axes.pcolormesh(values, cmap="viridis", vmin=0, vmax=100, edgecolors="w", lw=0.3)
