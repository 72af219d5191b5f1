"""One metric of a table over another: who gets most for least, accuracy over state size, say."""

from collections.abc import Mapping

from forgetmenot.report.figures import style
from forgetmenot.report.stats import Estimate
from forgetmenot.report.tables import Grid


def draw(grid: Grid, styles: Mapping[str, int]) -> style.Drawn | None:
    """A panel a group of rows, one point a variant; a line joins those that none surpasses.

    The points are the table's own cells. `styles` numbers the variants' looks. None unless the
    table has a `frontier` and a group has two variants with both numbers.
    """
    if grid.table.frontier is None:
        return None
    metrics = [head.column.metric for head in grid.heads]
    at_x, at_y = (metrics.index(metric) for metric in grid.table.frontier)
    groups = {
        group: points
        for group in dict.fromkeys(row.group for row in grid.rows)
        if len(points := _points(grid, group, at_x, at_y)) > 1
    }
    if not groups:
        return None
    columns = [grid.heads[n].column for n in (at_x, at_y)]
    factors = [column.factor for column in columns]
    with style.look():
        figure, panels = style.panels(len(groups), 3.4, share_y=True)
        for axes, (group, points) in zip(panels, groups.items(), strict=True):
            ends = []
            for variant, label, x, y in points:
                at = (x.value * factors[0], y.value * factors[1])
                ends.append(at)
                low = y.value if y.low is None else y.low
                high = y.value if y.high is None else y.high
                bars = [[max(0.0, y.value - low)], [max(0.0, high - y.value)]]
                look = style.line_style(styles[variant]) | {"linestyle": "none"}
                error = [[side[0] * factors[1]] for side in bars]
                axes.errorbar(*at, yerr=error, label=label, capsize=3, markersize=7, **look)
            axes.plot(*zip(*_frontier(ends), strict=True), color="#888888", lw=1, zorder=0)
            axes.set_xscale("log")
            axes.set(xlabel=columns[0].label, ylabel=columns[1].label)
            if group:
                axes.set_title(group, fontsize=10, loc="left")
        style.legend(figure)
        caption = (
            f"{grid.table.caption} Up and to the left is better. Grey: models that no other one "
            "surpasses in both. Bars: 95 % intervals, made as the table's notes say."
        )
        return style.finish(figure, f"frontier_{grid.table.name}", grid.table.title, caption)


def _points(
    grid: Grid, group: str, at_x: int, at_y: int
) -> list[tuple[str, str, Estimate, Estimate]]:
    return [
        (row.variant, row.label, x, y)
        for row, cells in zip(grid.rows, grid.cells, strict=True)
        if row.group == group
        and (x := cells[at_x].estimate) is not None
        and (y := cells[at_y].estimate) is not None
    ]


def _frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points with more of the second than every point with as little of the first."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept
