"""Needles found by length of the context and depth of the needle: one panel a model and task."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from forgetmenot.report import names
from forgetmenot.report.figures import style
from forgetmenot.report.names import Names
from forgetmenot.report.results import Results

METRIC = "accuracy_at_depth"
HEIGHT = 1.5  # inches of a row of panels
Cells = dict[tuple[int, int], list[float]]  # (depth, length): accuracies of the seeds


def draw(
    study: str, config: Mapping[str, Any], task: str, results: Results, known: Names
) -> style.Drawn | None:
    """Share of needles found, a mean over seeds; None if no variant has depths for `task`.

    Rows are variants, columns needle tasks. Depths are bins of ten per cent, named by their lower
    end; grey has no sample.
    """
    maps = {}
    for variant in config["variants"]:
        cells = _cells(study, variant["name"], task, results)
        if cells:
            maps[variant.get("label") or variant["name"]] = cells
    if not maps:
        return None
    kinds = sorted({kind for cells in maps.values() for kind in cells})
    with style.look():
        figure = Figure(figsize=(style.WIDTH, HEIGHT * len(maps) + 0.6), layout="constrained")
        panels = figure.subplots(len(maps), len(kinds), squeeze=False, sharex=True, sharey=True)
        mesh: Any = None
        for row, (label, cells) in zip(panels, maps.items(), strict=True):
            for axes, kind in zip(row, kinds, strict=True):
                mesh = _panel(axes, cells.get(kind, {}), maps)
            row[0].set_ylabel(f"{label}\ndepth (%)", fontsize=9)
        for axes, kind in zip(panels[0], kinds, strict=True):
            axes.set_title(names.value(kind), fontsize=9, loc="left")
        for axes in panels[-1]:
            axes.set_xlabel("context (tokens)", fontsize=9)
        bar = figure.colorbar(mesh, ax=panels.ravel().tolist(), shrink=0.6, pad=0.02)
        bar.set_label("needles found (%)")
        counts = [n for cells in maps.values() for found in cells.values() for n in _counts(found)]
        seeds = "one seed" if max(counts) == 1 else f"the mean of up to {max(counts)} seeds"
        caption = (
            "Share of needles found by length of the context and depth of the needle, from the "
            f"beginning (0) to the end (100); bins of ten per cent, {seeds}. Grey: no sample."
        )
        title = f"Needles found by length and depth ({known.study(study)}: {names.task(task)})"
        return style.finish(figure, f"niah_heat_map_{study}_{task}", title, caption)


def _cells(study: str, variant: str, task: str, results: Results) -> dict[str, Cells]:
    """The accuracies of every seed by needle task."""
    found: dict[str, Cells] = {}
    for result in results.get(study, variant, task):
        for entry in result.metrics:
            if entry["metric"] == METRIC:
                at = entry["at"]
                cell = found.setdefault(at["task"], {}).setdefault((at["depth"], at["length"]), [])
                cell.append(entry["value"])
    return found


def _counts(cells: Cells) -> list[int]:
    return [len(values) for values in cells.values()]


def _panel(axes: Axes, cells: Cells, maps: dict[str, dict[str, Cells]]) -> Any:
    """Draw one map; its axes have the lengths and depths of all maps, so that panels compare."""
    places = [place for found in maps.values() for kind in found.values() for place in kind]
    depths, lengths = (sorted({place[n] for place in places}) for n in (0, 1))
    shares = np.full((len(depths), len(lengths)), np.nan)
    for (depth, length), values in cells.items():
        shares[depths.index(depth), lengths.index(length)] = 100 * float(np.mean(values))
    axes.set_facecolor("0.85")
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(shares), cmap="viridis", vmin=0, vmax=100, edgecolors="w", lw=0.3
    )
    axes.grid(False)
    axes.set_xticks(
        np.arange(len(lengths)) + 0.5, [f"{length:g}" for length in lengths], fontsize=8
    )
    shown = range(0, len(depths), max(1, len(depths) // 5))
    axes.set_yticks([n + 0.5 for n in shown], [f"{depths[n]:g}" for n in shown], fontsize=8)
    axes.set_ylim(len(depths), 0)
    return mesh
