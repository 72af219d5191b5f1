"""A table as LaTeX that needs only the booktabs package, and a document that holds them all."""

import unicodedata
from collections.abc import Sequence

from forgetmenot.report.published import Anchor
from forgetmenot.report.tables import Cell, Grid, Head, number

_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "λ": r"$\lambda$",
    "Δ": r"$\Delta$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "…": r"\ldots{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}
_MARKS = {"best": r"\textbf", "second": r"\underline"}


def table(grid: Grid) -> str:
    """A table environment: our numbers, our notes, and below, apart, what others published."""
    lines = [_row(["model", *(head.text for head in grid.heads)]), r"\midrule"]
    group = ""
    for row, cells in zip(grid.rows, grid.cells, strict=True):
        if row.group and row.group != group:
            group = row.group
            width = len(grid.heads) + 1
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escape(group)}}}}} \\")
        shown = [_cell(*pair) for pair in zip(cells, grid.heads, strict=True)]
        lines.append(" & ".join([escape(row.label), *shown]) + r" \\")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{escape(f'{grid.table.title}. {grid.table.caption}'.strip())}}}",
            rf"\label{{tab:{grid.table.name}}}",
            *_tabular(len(grid.heads), lines),
            *(rf"\par\footnotesize {escape(note)}" for note in grid.notes),
            *(line for anchor in grid.anchors for line in _anchor(anchor)),
            r"\end{table}",
            "",
        ]
    )


def document(names: Sequence[str]) -> str:
    """A document that shows the tables of the files <name>.tex beside it."""
    shown = [line for name in names for line in (rf"\input{{{name}}}", r"\clearpage")]
    return "\n".join(
        [
            r"\documentclass{article}",
            r"\usepackage{booktabs}",
            r"\begin{document}",
            *shown,
            r"\end{document}",
            "",
        ]
    )


def escape(text: str) -> str:
    """Text with LaTeX's special characters made harmless, and none that plain LaTeX lacks."""
    return "".join(_TEX.get(c) or _plain(c) for c in text)


def _plain(character: str) -> str:
    if ord(character) < 0x180:  # Latin, which LaTeX reads as UTF-8
        return character
    shown = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return shown or "?"


def _cell(cell: Cell, head: Head) -> str:
    value, interval = number(cell, head)
    shown = escape(value)
    if cell.mark:
        shown = f"{_MARKS[cell.mark]}{{{shown}}}"
    return shown + (rf" {{\scriptsize {escape(interval)}}}" if interval else "")


def _anchor(anchor: Anchor) -> list[str]:
    words = (
        f"Published by others, not comparable with ours: {anchor.title}. {anchor.source}. "
        f"{anchor.conditions}"
    )
    body = [_row(anchor.header), r"\midrule", *(_row(row) for row in anchor.rows)]
    return [
        r"\par\medskip",
        rf"\footnotesize {escape(words)}",
        r"\par\smallskip",
        *_tabular(len(anchor.header) - 1, body),
    ]


def _tabular(numbers: int, lines: Sequence[str]) -> list[str]:
    begin = rf"\begin{{tabular}}{{l{'r' * numbers}}}"
    return [begin, r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"]


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\"
