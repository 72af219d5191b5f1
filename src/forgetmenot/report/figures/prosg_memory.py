"""What other ways to keep a prompt remember, over the memory that they take, model by model."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from forgetmenot.report.estimate import estimate, gather
from forgetmenot.report.figures import style
from forgetmenot.report.names import Names
from forgetmenot.report.results import Results, axis_values
from forgetmenot.report.stats import Estimate

METRIC, MEMORY = "accuracy", "session_floats"
HEIGHT = 2.6  # inches of a row of panels
Point = tuple[float, Estimate]


def draw(
    study: str, config: Mapping[str, Any], task: str, results: Results, known: Names
) -> style.Drawn | None:
    """Accuracy on facts over floats a session; None unless a model was tuned on its prompts.

    One panel for each such model, its rivals at test time as points, the other models in grey; at
    the most facts, over all distances.
    """
    found = {}
    for variant in config["variants"]:
        points = _points(results, study, variant["name"], task)
        if points:
            found[variant.get("label") or variant["name"]] = points
    shown = [label for label, points in found.items() if any("ttt" in name for name in points)]
    if not shown:
        return None
    controls = sorted({name for label in shown for name in found[label]}, key=_natural)
    with style.look():
        rows = math.ceil(len(shown) / 2)
        figure = Figure(figsize=(style.WIDTH, HEIGHT * rows + 1.0), layout="constrained")
        panels = figure.subplots(rows, min(2, len(shown)), squeeze=False, sharey=True).ravel()
        for axes, label in zip(panels, shown, strict=False):
            others = [points["none"] for name, points in found.items() if name != label]
            _panel(axes, found[label], controls, others)
            axes.set_title(label, fontsize=10, loc="left")
            axes.set(xlabel="memory of a session (floats)", ylabel="accuracy (%)")
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        style.legend(figure)
        caption = (
            "Accuracy on facts of the prompt, over all distances, with the most facts that were "
            "asked, under ways to keep the prompt that need no training; none: the model as it is. "
            "Grey: the other models as they are. Up and to the left is better. Bars: 95 % "
            "intervals. Memory is counted, not measured: what it may hold, not what it does."
        )
        title = f"Rivals at test time by the memory they take ({known.study(study)})"
        return style.finish(figure, f"prosg_memory_{study}_{task}", title, caption)


def _points(results: Results, study: str, variant: str, task: str) -> dict[str, Point]:
    """By control: floats, and accuracy with its interval."""
    group = results.get(study, variant, task)
    facts = axis_values(group, MEMORY, "facts")
    points = {}
    for control in axis_values(group, MEMORY, "control") if facts else []:
        at = {"facts": facts[-1], "control": control}
        memory = gather(group, MEMORY, at)
        right = gather(group, METRIC, {**at, "kind": "fact"}, pool=True)
        if memory is not None and right is not None:
            points[control] = (estimate(memory).value, estimate(right))
    return points if "none" in points else {}


def _panel(
    axes: Axes, points: Mapping[str, Point], controls: list[str], others: list[Point]
) -> None:
    for floats, e in others:
        axes.plot(floats, 100 * e.value, color="#bbbbbb", marker="o", markersize=4, zorder=0)
    for control, (floats, e) in points.items():
        low = e.value if e.low is None else e.low
        high = e.value if e.high is None else e.high
        bars = [[100 * max(0.0, e.value - low)], [100 * max(0.0, high - e.value)]]
        number = controls.index(control)
        look = style.line_style(number) | {"linestyle": "none"}
        if number >= len(style.COLOURS):  # colours and markers begin again
            look |= {"markerfacecolor": "white"}
        axes.errorbar(
            floats, 100 * e.value, yerr=bars, label=control, capsize=3, markersize=6, **look
        )
    axes.set_xscale("log")


def _natural(control: str) -> tuple[str, int]:
    """Names in alphabetical order, the number at their end as a number."""
    name = control.rstrip("0123456789")
    return name, int(control[len(name) :] or 0)
