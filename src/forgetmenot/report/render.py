"""Writes a table as Markdown, CSV (long form, full precision), LaTeX and HTML."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from forgetmenot import files
from forgetmenot.report import html, latex, seeds
from forgetmenot.report.published import Anchor
from forgetmenot.report.tables import Cell, Grid, Head, Row, number

PUBLISHED = "Published by others (their models, data and sizes; not comparable with ours)"
ENDS = ("md", "csv", "tex", "html")


def markdown(grid: Grid) -> str:
    """GitHub Markdown: heading, caption, table, notes, and apart what others published."""

    def text(cell: Cell, head: Head) -> str:
        value, interval = number(cell, head)
        marked = {"best": f"**{value}**", "second": f"<u>{value}</u>"}.get(cell.mark, value)
        return " ".join(filter(None, [marked, interval]))

    rows = [["model", *(head.text for head in grid.heads)]]
    for row, cells in zip(grid.rows, grid.cells, strict=True):
        pairs = zip(cells, grid.heads, strict=True)
        rows.append([row_label(row), *(text(*pair) for pair in pairs)])
    head = [f"## {grid.table.title}", "", grid.table.caption, ""]
    notes = [f"- {note}" for note in grid.notes]
    others = [line for anchor in grid.anchors for line in _anchor(anchor)]
    return "\n".join([*head, *_table(rows), "", *notes, *others]) + "\n"


def _anchor(anchor: Anchor) -> list[str]:
    words = f"{anchor.title}. Source: {anchor.source}. {anchor.conditions}"
    return ["", f"### {PUBLISHED}", "", words, "", *_table([anchor.header, *anchor.rows])]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    whole = [rows[0], ["---"] + ["---:"] * (len(rows[0]) - 1), *rows[1:]]
    return ["| " + " | ".join(c.replace("|", r"\|") for c in row) + " |" for row in whole]


def csv_text(grid: Grid) -> str:
    """One line for each number that exists, unrounded, with its seeds' values and manifests."""
    names = ["study", "variant", "label", "task", "metric", "at", "value", "low", "high", "n"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*names, "seeds", "interval", "mark", "by_seed", "manifests"])
    for row, cells in zip(grid.rows, grid.cells, strict=True):
        for head, cell in zip(grid.heads, cells, strict=True):
            if not cell.sources:
                continue
            at = ";".join(f"{key}={value}" for key, value in {**row.at, **head.at}.items())
            manifests = ";".join((s.directory / "manifest.json").as_posix() for s in cell.sources)
            place = [row.study, row.variant, row.label, head.task, head.column.metric, at]
            e = cell.estimate
            numbers = (
                [e.value, e.low, e.high, e.n, e.seeds, e.method]
                if e
                else [cell.text, None, None, None, len(cell.sources), "none"]
            )
            writer.writerow([*place, *numbers, cell.mark, seeds.exact(cell), manifests])
    return buffer.getvalue()


def row_label(row: Row) -> str:
    """A row's name: the variant, and in brackets what its group of rows has in common."""
    return f"{row.label} ({row.group})" if row.group else row.label


def write(grid: Grid, folder: Path) -> None:
    """Write <name>.md, .csv, .tex and .html into `folder`."""
    texts = (markdown(grid), csv_text(grid), latex.table(grid), html.table(grid))
    for end, text in zip(ENDS, texts, strict=True):
        files.write_text(folder / f"{grid.table.name}.{end}", text)
