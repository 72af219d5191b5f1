"""The numbers of a table over their axis: recall over pairs, retention over distance, and so on."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from forgetmenot.report.figures import style
from forgetmenot.report.spec import Column
from forgetmenot.report.tables import Grid


def draw(grid: Grid, styles: Mapping[str, int]) -> style.Drawn | None:
    """One panel for each labelled column with two or more numeric axis values, and group of rows.

    The points are the table's own cells, so figure and table cannot disagree. `styles` numbers the
    variants' looks. None if no column has such an axis.
    """
    groups = list(dict.fromkeys(row.group for row in grid.rows))
    wanted = [
        (column, group, places)
        for column in grid.table.columns
        if column.label
        for group in groups
        if len(places := _places(grid, column, group)) > 1
    ]
    if not wanted:
        return None
    with style.look():
        figure, panels = style.panels(len(wanted), 3.0, share_y=True)
        for axes, (column, group, places) in zip(panels, wanted, strict=True):
            _panel(axes, grid, column, group, places, styles)
        style.legend(figure)
        caption = (
            f"{grid.table.caption} Bars: 95 % intervals, made as the table's notes say.".strip()
        )
        return style.finish(figure, f"lines_{grid.table.name}", grid.table.title, caption)


def _places(grid: Grid, column: Column, group: str) -> list[int]:
    """Indices of the table's columns that belong to one configured column's numeric axis."""
    lines = [cells for row, cells in zip(grid.rows, grid.cells, strict=True) if row.group == group]
    return [
        index
        for index, head in enumerate(grid.heads)
        if head.column is column
        and isinstance(head.at.get(column.axis), int | float)
        and any(cells[index].estimate for cells in lines)
    ]


def _panel(
    axes: Axes,
    grid: Grid,
    column: Column,
    group: str,
    places: list[int],
    styles: Mapping[str, int],
) -> None:
    axis = [float(grid.heads[i].at[column.axis]) for i in places]
    at = list(range(len(axis)))  # evenly spaced: these axes are powers of two, often with a 0
    lines = [
        (row, cells) for row, cells in zip(grid.rows, grid.cells, strict=True) if row.group == group
    ]
    for number, (row, cells) in enumerate(lines):
        kept = [(x, e) for x, i in zip(at, places, strict=True) if (e := cells[i].estimate)]
        if not kept:
            continue
        # A small shift to the side keeps the bars of equal values apart.
        shift = (number - (len(lines) - 1) / 2) * 0.06
        mean = np.array([e.value for _, e in kept]) * column.factor
        low = np.array([e.value if e.low is None else e.low for _, e in kept]) * column.factor
        high = np.array([e.value if e.high is None else e.high for _, e in kept]) * column.factor
        axes.errorbar(
            [x + shift for x, _ in kept],
            mean,
            yerr=np.abs(np.stack([mean - low, high - mean])),
            label=row.label,
            capsize=3,
            markersize=5,
            elinewidth=1,
            **style.line_style(styles[row.variant]),
        )
    axes.set_xticks(at, [f"{x:g}" for x in axis])
    axes.set(xlabel=column.axis_label or column.axis, ylabel=column.label)
    if group:
        axes.set_title(group, fontsize=10, loc="left")
