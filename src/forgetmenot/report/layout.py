"""How a table lies on the page: in parts that fit a screen, axis values below a shared heading."""

from collections.abc import Sequence
from dataclasses import dataclass

from forgetmenot.report import names
from forgetmenot.report.spec import Column
from forgetmenot.report.tables import Grid

MOST = 8  # columns of numbers: so many, with intervals, fit 1,280 pixels beside the model's name


@dataclass(frozen=True)
class Heading:
    """One heading: the grid's columns below it and, where it has several, the value of each."""

    text: str
    columns: list[int]
    values: list[str]


def parts(grid: Grid, wanted: Sequence[int] | None = None) -> list[list[Heading]]:
    """The wanted columns of a grid (all by default) as few tables, of about equal width.

    Columns of one axis stay together unless they alone are too many.
    """
    headings = _headings(grid, range(len(grid.heads)) if wanted is None else wanted)
    tries = [_packed(headings, most) for most in range(1, MOST + 1)]
    return next(found for found in tries if len(found) == len(tries[-1]))


def _packed(headings: Sequence[Heading], most: int) -> list[list[Heading]]:
    """Headings in order, so many columns to a table; a wider heading has a table of its own."""
    found: list[list[Heading]] = []
    room = 0
    for heading in headings:
        if len(heading.columns) > room:
            found.append([])
            room = most
        found[-1].append(heading)
        room -= len(heading.columns)
    return found


def _headings(grid: Grid, wanted: Sequence[int]) -> list[Heading]:
    """Columns of one axis under one heading, at most MOST; every other column under its own."""
    runs: list[list[int]] = []
    for index in wanted:
        column = grid.heads[index].column
        shared = runs and column.axis and grid.heads[runs[-1][0]].column is column
        if shared and len(runs[-1]) < MOST:
            runs[-1].append(index)
        else:
            runs.append([index])
    return [_heading(grid, run) for run in runs]


def _heading(grid: Grid, run: list[int]) -> Heading:
    first = grid.heads[run[0]]
    if len(run) == 1:
        return Heading(first.text, run, [])
    axis = first.column.axis
    return Heading(over(first.column), run, [names.value(grid.heads[n].at[axis]) for n in run])


def over(column: Column) -> str:
    """The heading over the values of a column's axis: what is measured and, unless said, by what.

    A heading that ends in ":" names its axis itself; one that is nothing but the axis gets the
    axis's full name and unit.
    """
    name = column.header.rstrip(" :@")
    axis = column.axis_label or column.axis
    if name in ("", column.axis):
        return axis
    return f"{name} by {axis}" if column.header.endswith("@") else name
