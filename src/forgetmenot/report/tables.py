"""Builds a table: one row for each variant, one cell for each metric and axis value."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forgetmenot.report import bounds, names
from forgetmenot.report.estimate import MARKS, Evidence, estimate, gather, marks
from forgetmenot.report.published import Anchor
from forgetmenot.report.results import TRAIN, Result, Results, axis_values, skipped, text
from forgetmenot.report.spec import LONGEST, Column, Table
from forgetmenot.report.stats import Estimate

EMPTY = "-"


@dataclass
class Cell:
    """One number with its interval, the results it comes from, and its mark (best or second).

    `text` stands instead of a number where the metric is a text.
    """

    estimate: Estimate | None
    sources: list[Result]
    mark: str = ""
    text: str = ""
    evidence: Evidence | None = None
    cut: bool = False  # whether the interval ends where the metric's values do


@dataclass(frozen=True)
class Row:
    """One variant of one study, at one value of the table's `split` axis if it has one."""

    study: str
    variant: str
    label: str  # the variant's name in figures and tables
    group: str = ""  # what the row shares with its neighbours: study and split value
    at: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Head:
    """One concrete column: the metric's column and, if it has an axis, one value of it."""

    column: Column
    task: str
    at: dict[str, Any]

    @property
    def text(self) -> str:
        """Heading, with the axis value at its end."""
        value = self.at.get(self.column.axis)
        shown = "" if value is None else f" {names.value(value)}"
        return f"{self.column.header}{shown}".strip()


@dataclass
class Grid:
    """A table ready to be rendered; `cells[i][j]` belongs to `rows[i]` and `heads[j]`."""

    table: Table
    rows: list[Row]
    heads: list[Head]
    cells: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    anchors: list[Anchor] = field(default_factory=list)  # what others published, kept apart


def build(table: Table, studies: Mapping[str, Any], results: Results) -> Grid:
    """Fill the table from the results. A number that does not exist is an empty cell and a note."""
    rows = _rows(table, studies, results)
    heads = [
        head
        for column in table.columns
        for head in _heads(column, column.task or table.task, rows, results)
    ]
    missing, cells, kept = [], [], []
    for row in rows:
        line = [_cell(row, head, studies[row.study], results) for head in heads]
        if table.only_scored and not _expected(row, [cell for cell, _ in line], results):
            continue
        kept.append(row)
        cells.append([cell for cell, _ in line])
        missing += [lack for _, lack in line if lack]
    heads, cells, lacking = _with_numbers(heads, cells)
    missing += lacking
    rows, cells = _ordered(table, kept, heads, cells)
    for group in dict.fromkeys(row.group for row in rows):
        lines = [line for row, line in zip(rows, cells, strict=True) if row.group == group]
        for index, head in enumerate(heads):
            _mark([line[index] for line in lines], head.column.better)
    if not rows:
        missing.append("This report has no study of that kind: an empty table.")
    notes = [
        *table.notes,
        *_about(cells),
        *_shorten(list(dict.fromkeys(missing))),
        *_method(rows, heads, cells),
    ]
    return Grid(table, rows, heads, cells, notes)


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


def _cell(row: Row, head: Head, study: Mapping[str, Any], results: Results) -> tuple[Cell, str]:
    """The cell of a row and column, and what it lacks; empty if nothing."""
    sources = results.get(row.study, row.variant, head.task)
    at = {**head.at, **row.at}
    reason = skipped(sources, at)
    shown = text(sources, head.column.metric, at) or ("skipped" if reason else "")
    evidence = gather(sources, head.column.metric, at, head.column.pool)
    free = estimate(evidence) if evidence else None
    seeds = evidence.values if evidence else {}
    own = [source for source in sources if source.seed in seeds]
    number = bounds.cut(free, head.column, own, at) if free else None
    planned = len(_seeds(study, row.variant, head.task))
    whole = shown or (number is not None and number.seeds >= planned)
    lack = ""
    if reason:
        lack = f"{head.text or names.task(head.task)}: skipped: {reason}."
    elif not whole and not head.column.optional:
        lack = _lack(row, head, number, planned, sources, study.get("title") or row.study)
    used = sources if shown or number else []
    return Cell(number, used, "", shown, evidence, number != free), lack


def _seeds(study: Mapping[str, Any], variant: str, task: str) -> list[int]:
    """The seeds that were asked of a variant and task: not all need all of the study's."""
    own = (study.get("variant_seeds") or {}).get(variant, study["seeds"])
    of_task = ((study.get("task_overrides") or {}).get(task) or {}).get("seeds")
    return [seed for seed in own if of_task is None or seed in of_task]


def _expected(row: Row, cells: list[Cell], results: Results) -> bool:
    """Whether a row has a number or one that was asked for is missing."""
    folder = f"{row.study}/{row.variant}/"
    return any(cell.sources for cell in cells) or any(
        line.startswith(folder) for line in results.missing
    )


def _lack(
    row: Row, head: Head, number: Estimate | None, planned: int, sources: list[Result], study: str
) -> str:
    if not sources:
        return f'{row.label}: no result of {names.task(head.task)} in the study "{study}".'
    if number is None and sources[0].untrained:
        return f"{row.label}: not trained here; its weights were imported."
    had = "no number" if number is None else f"{number.seeds} of {planned} seeds"
    where = "".join(f", {key} {names.value(value)}" for key, value in row.at.items())
    return f'{row.label}: {had} for "{head.text}"{where}.'


def _with_numbers(
    heads: list[Head], cells: list[list[Cell]]
) -> tuple[list[Head], list[list[Cell]], list[str]]:
    """Heads and cells without the optional columns in which no row has anything; a note of them."""
    kept = [
        index
        for index, head in enumerate(heads)
        if not (cells and head.column.optional) or any(line[index].sources for line in cells)
    ]
    lost = [head.text for index, head in enumerate(heads) if index not in kept]
    named = ", ".join(f'"{text.rstrip(" :@")}"' for text in lost)
    notes = [f"Columns left out, as no model here has them: {named}."] if lost else []
    return [heads[n] for n in kept], [[line[n] for n in kept] for line in cells], notes


def _ordered(
    table: Table, rows: list[Row], heads: list[Head], cells: list[list[Cell]]
) -> tuple[list[Row], list[list[Cell]]]:
    """Rows and cells with the rows of each group ordered by the metric `table.order`."""
    if not table.order or not rows:
        return rows, cells
    place = next(n for n, head in enumerate(heads) if head.column.metric == table.order)
    groups = list(dict.fromkeys(row.group for row in rows))

    def key(line: tuple[Row, list[Cell]]) -> tuple[int, bool, str, float]:
        cell = line[1][place]
        value = cell.estimate.value if cell.estimate else 0.0
        return groups.index(line[0].group), not cell.sources, cell.text, value

    ordered = sorted(zip(rows, cells, strict=True), key=key)
    return [row for row, _ in ordered], [line for _, line in ordered]


def _rows(table: Table, studies: Mapping[str, Any], results: Results) -> list[Row]:
    chosen = [
        name
        for name, study in studies.items()
        if table.study == name
        or (
            not table.study
            and study["paper"] == table.paper
            and (table.task in study["tasks"] or table.task == TRAIN)
        )
    ]
    return [row for study in chosen for row in _study_rows(table, study, studies, results, chosen)]


def _study_rows(
    table: Table, study: str, studies: Mapping[str, Any], results: Results, chosen: list[str]
) -> list[Row]:
    variants = [v for v in studies[study]["variants"] if not table.rows or v["name"] in table.rows]
    if table.rows:
        order = table.rows
        variants.sort(key=lambda variant: order.index(variant["name"]))
    group = studies[study].get("title") or study if len(chosen) > 1 else ""
    splits: list[Any] = [None]
    if table.split:
        done = [r for v in variants for r in results.get(study, v["name"], table.task)]
        splits = axis_values(done, table.columns[0].metric, table.split) or [None]
    rows = []
    for value in splits:
        named = "" if value is None else f"{table.split_label} {names.value(value)}".strip()
        at = {} if value is None else {table.split: value}
        for variant in variants:
            label = variant.get("label") or variant["name"]
            shared = ", ".join(filter(None, [group, named]))
            rows.append(Row(study, variant["name"], label, shared, at))
    return rows


def _heads(column: Column, task: str, rows: list[Row], results: Results) -> list[Head]:
    variants = dict.fromkeys((row.study, row.variant) for row in rows)
    done = [result for variant in variants for result in results.get(*variant, task)]
    where = dict(column.where)
    for axis, value in column.where.items():
        measured = axis_values(done, column.metric, axis) if value == LONGEST else []
        if measured:
            where[axis] = measured[-1]
    if not column.axis:
        return [Head(column, task, where)]
    wanted = column.values
    if wanted is None:
        wanted = axis_values(done, column.metric, column.axis)
    # A column for which no result exists at all still shows, empty, so that its lack is seen.
    return [Head(column, task, {**where, column.axis: value}) for value in wanted] or [
        Head(column, task, where)
    ]


def _about(cells: list[list[Cell]]) -> list[str]:
    """What was scored, in the evaluators' own words (a protocol, the name of a haystack)."""
    sources = {s.anchor: s for line in cells for cell in line for s in cell.sources}.values()
    words = {
        f"{names.task(source.task)}: {key}: {said if isinstance(said, str) else json.dumps(said)}."
        for source in sources
        for key, said in source.about.items()
    }
    return sorted(words)


def _mark(cells: list[Cell], better: str) -> None:
    sign = {"higher": 1.0, "lower": -1.0}.get(better)
    if sign is not None and sum(cell.evidence is not None for cell in cells) > 1:
        for cell, mark in zip(cells, marks([c.evidence for c in cells], sign), strict=True):
            cell.mark = mark


def _shorten(notes: list[str], limit: int = 12) -> list[str]:
    if len(notes) <= limit:
        return notes
    left = len(notes) - limit
    return [*notes[:limit], f"{left} more numbers are missing."]


def _counts(rows: list[Row], cells: list[list[Cell]]) -> str:
    """How many seeds the means are of, with the rows that have fewer than others."""
    found: dict[int, dict[str, None]] = {}
    for row, line in zip(rows, cells, strict=True):
        for cell in line:
            if cell.estimate and cell.estimate.method != "none":
                found.setdefault(cell.estimate.seeds, {})[row.label] = None
    most = max(found)
    fewer = [f"{n} ({'; '.join(labels)})" for n, labels in sorted(found.items()) if n < most]
    return f"seeds: {most}" + "".join(f", in places {text}" for text in fewer)


def _cut(heads: list[Head], cells: list[list[Cell]]) -> list[str]:
    """Which columns have an interval that ends where the metric's values do."""
    columns = zip(heads, zip(*cells, strict=True), strict=True)
    ends = [head.column.header for head, column in columns if any(c.cut for c in column)]
    shown = ", ".join(f'"{header}"' for header in dict.fromkeys(ends))
    return [f"Intervals are cut where the values of the metric end: {shown}."] if ends else []


def _method(rows: list[Row], heads: list[Head], cells: list[list[Cell]]) -> list[str]:
    known = [cell.estimate for line in cells for cell in line if cell.estimate]
    known = [estimate for estimate in known if estimate.method != "none"]
    shown = sorted({estimate.method for estimate in known})
    notes = []
    if shown:
        seeds = sorted({estimate.seeds for estimate in known})
        notes.append(f"In brackets: 95 % interval ({'; '.join(shown)}); {_counts(rows, cells)}.")
        notes += _cut(heads, cells)
        if seeds[0] == 1:
            notes.append(
                "With one seed the interval covers the choice of test samples only, "
                "not what another training run would give."
            )
        elif seeds[0] < 5:
            notes.append("With few seeds, intervals that resample seeds are too narrow.")
    if any(cell.mark for line in cells for cell in line):
        notes.append(MARKS)
    return notes
