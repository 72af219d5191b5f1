"""Tables on the page: in parts that fit, axis values below one heading, nothing lost."""

import re
from typing import Any

import pytest

from forgetmenot.report import html, layout
from forgetmenot.report.spec import Column, Table
from forgetmenot.report.tables import Cell, Grid, Head, Row

PAIRS = Column("accuracy", "accuracy (%) @", "recall", "pairs", axis_label="pairs in memory")


def grid_of(*columns: tuple[Column, list[Any]]) -> Grid:
    """A grid of one empty row, with a column for each value (none: one column without an axis)."""
    heads = [
        Head(column, "recall", {} if value is None else {column.axis: value})
        for column, values in columns
        for value in values or [None]
    ]
    table = Table("t", "lte", [column for column, _ in columns], name="t")
    return Grid(table, [Row("recall", "gdn", "GDN")], heads, [[Cell(None, []) for _ in heads]])


def single(name: str) -> tuple[Column, list[Any]]:
    return Column(name, name, "recall"), []


def widths(grid: Grid) -> list[list[int]]:
    return [[len(heading.columns) for heading in part] for part in layout.parts(grid)]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([single("a"), (PAIRS, [1, 2, 4])], [[1, 3]]),
        ([single(n) for n in "abcdefghijk"], [[1] * 6, [1] * 5]),  # even rather than 8 and 3
        ([single("a"), single("b"), (PAIRS, [1, 2, 3, 4, 5, 6])], [[1, 1, 6]]),
        ([single("a"), single("b"), (PAIRS, [1, 2, 3, 4, 5, 6, 7])], [[1, 1], [7]]),
        ([(PAIRS, list(range(11)))], [[8], [3]]),
        ([single("a")], [[1]]),
    ],
)
def test_parts_are_few_even_and_whole(columns: Any, expected: list[list[int]]) -> None:
    grid = grid_of(*columns)
    assert widths(grid) == expected
    order = [n for part in layout.parts(grid) for heading in part for n in heading.columns]
    assert order == list(range(len(grid.heads)))


def test_a_heading_names_its_axis_once() -> None:
    made = {
        "accuracy (%) @": "accuracy (%) by pairs in memory",
        "found (%), length:": "found (%), length",
        "pairs:": "pairs in memory",
        "": "pairs in memory",
    }
    for header, over in made.items():
        assert layout.over(Column("m", header, "t", "pairs", axis_label="pairs in memory")) == over
    (part,) = layout.parts(grid_of((PAIRS, [4, 8])))
    assert part == [layout.Heading("accuracy (%) by pairs in memory", [0, 1], ["4", "8"])]
    (part,) = layout.parts(grid_of((PAIRS, [4])))
    assert part == [layout.Heading("accuracy (%) @ 4", [0], [])]


def test_every_part_has_its_models_and_as_many_cells_as_headings() -> None:
    halves = single("a"), (PAIRS, [1, 2, 3, 4]), single("b"), (PAIRS, [5, 6, 7, 8])
    text = html.table(grid_of(*halves))
    tables = re.findall(r"<table>.*?</table>", text, re.S)
    assert len(tables) == 2
    for table in tables:
        rows = re.findall(r"<tr>.*?</tr>", table, re.S)
        spans = [int(n) for n in re.findall(r'colspan="(\d+)"', rows[0])]
        first = len(re.findall("<th", rows[0])) - len(spans) + sum(spans)
        assert first == len(re.findall("<td", rows[-1]))
        assert sum(spans) == len(re.findall("<th", rows[1]))
        assert "<td>GDN</td>" in rows[-1]
