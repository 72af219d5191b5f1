"""Writes a table as Markdown, CSV (long form, full precision) and LaTeX (booktabs)."""

import csv
import io
from pathlib import Path

from forgetmenot import files
from forgetmenot.report.tables import Cell, Grid, Head, Row

EMPTY = "-"
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def number(cell: Cell, head: Head) -> tuple[str, str]:
    """The formatted value and its interval in brackets, empty where there is none to be seen."""
    if cell.estimate is None:
        return cell.text or EMPTY, ""
    factor, form = head.column.factor, head.column.format
    value = format(cell.estimate.value * factor, form)
    if cell.estimate.low is None or cell.estimate.high is None:
        return value, ""
    low, high = (format(end * factor, form) for end in (cell.estimate.low, cell.estimate.high))
    return value, "" if low == value == high else f"[{low}, {high}]"


def markdown(grid: Grid) -> str:
    """GitHub Markdown: heading, caption, table, notes."""

    def text(cell: Cell, head: Head) -> str:
        value, interval = number(cell, head)
        return " ".join(filter(None, [f"**{value}**" if cell.best else value, interval]))

    lines = [["model", *(head.text for head in grid.heads)]]
    lines.append(["---"] + ["---:"] * len(grid.heads))
    for row, cells in zip(grid.rows, grid.cells, strict=True):
        pairs = zip(cells, grid.heads, strict=True)
        lines.append([row_label(row), *(text(*pair) for pair in pairs)])
    body = ["| " + " | ".join(c.replace("|", r"\|") for c in line) + " |" for line in lines]
    head = [f"## {grid.table.title}", "", grid.table.caption, ""]
    return "\n".join([*head, *body, "", *(f"- {note}" for note in grid.notes)]) + "\n"


def csv_text(grid: Grid) -> str:
    """One line for each number that exists, unrounded, with the manifests it comes from."""
    names = ["study", "variant", "label", "task", "metric", "at", "value", "low", "high", "n"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*names, "seeds", "interval", "manifests"])
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
            writer.writerow([*place, *numbers, manifests])
    return buffer.getvalue()


def latex(grid: Grid) -> str:
    """A booktabs table environment; needs only the booktabs package."""

    def text(cell: Cell, head: Head) -> str:
        value, interval = number(cell, head)
        shown = escape(value)
        shown = rf"\textbf{{{shown}}}" if cell.best else shown
        return shown + (rf" {{\scriptsize {escape(interval)}}}" if interval else "")

    lines = [" & ".join(["model", *(escape(head.text) for head in grid.heads)]) + r" \\"]
    lines.append(r"\midrule")
    for row, cells in zip(grid.rows, grid.cells, strict=True):
        label = escape(row_label(row))
        pairs = zip(cells, grid.heads, strict=True)
        lines.append(" & ".join([label, *(text(*pair) for pair in pairs)]) + r" \\")
    caption = escape(f"{grid.table.title}. {grid.table.caption} {' '.join(grid.notes)}".strip())
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{grid.table.name}}}",
            rf"\begin{{tabular}}{{l{'r' * len(grid.heads)}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def row_label(row: Row) -> str:
    """A row's name: the variant, and in brackets what its group of rows has in common."""
    return f"{row.label} ({row.group})" if row.group else row.label


def escape(text: str) -> str:
    """Text with LaTeX's special characters made harmless."""
    return "".join(_TEX.get(character, character) for character in text)


def write(grid: Grid, folder: Path) -> None:
    """Write <name>.md, .csv and .tex into `folder`."""
    files.write_text(folder / f"{grid.table.name}.md", markdown(grid))
    files.write_text(folder / f"{grid.table.name}.csv", csv_text(grid))
    files.write_text(folder / f"{grid.table.name}.tex", latex(grid))
