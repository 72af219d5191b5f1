"""Builds a table: one row for each variant, one cell for each metric and axis value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forgetmenot.report.results import TRAIN, Result, Results, axis_values, text, values
from forgetmenot.report.spec import Column, Table
from forgetmenot.report.stats import Estimate, mean_of_samples, mean_of_values


@dataclass
class Cell:
    """One number with its interval, the results it comes from, and whether it is marked best.

    `text` stands instead of a number where the metric is a text.
    """

    estimate: Estimate | None
    sources: list[Result]
    best: bool = False
    text: str = ""


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
        return self.column.header if value is None else f"{self.column.header} {value}".strip()


@dataclass
class Grid:
    """A table ready to be rendered; `cells[i][j]` belongs to `rows[i]` and `heads[j]`."""

    table: Table
    rows: list[Row]
    heads: list[Head]
    cells: list[list[Cell]]
    notes: list[str] = field(default_factory=list)


def build(table: Table, studies: Mapping[str, Any], results: Results) -> Grid:
    """Fill the table from the results. A number that does not exist is an empty cell and a note."""
    rows = _rows(table, studies, results)
    heads = [
        head
        for column in table.columns
        for head in _heads(column, column.task or table.task, rows, results)
    ]
    missing, cells = [], []
    for row in rows:
        line = []
        for head in heads:
            sources = results.get(row.study, row.variant, head.task)
            at = {**head.at, **row.at}
            shown = text(sources, head.column.metric, at)
            estimate = cell_estimate(sources, head.column.metric, at)
            planned = len(studies[row.study]["seeds"])
            whole = shown or (estimate is not None and estimate.seeds >= planned)
            if not whole and not head.column.optional:
                missing.append(_lack(row, head, estimate, planned, sources))
            line.append(Cell(estimate, sources if shown or estimate else [], text=shown))
        cells.append(line)
    rows, cells = _ordered(table, rows, heads, cells)
    for group in dict.fromkeys(row.group for row in rows):
        lines = [line for row, line in zip(rows, cells, strict=True) if row.group == group]
        for index, head in enumerate(heads):
            _mark_best([line[index] for line in lines], head.column.better)
    if not rows:
        missing.append(f"No study of this scale has {table.study or table.task!r}: an empty table.")
    lacks = _shorten(list(dict.fromkeys(missing)))
    return Grid(table, rows, heads, cells, [*table.notes, *lacks, *_method(cells)])


def _lack(
    row: Row, head: Head, estimate: Estimate | None, planned: int, sources: list[Result]
) -> str:
    if not sources:
        return f"{row.label}: no result of {row.study}/{row.variant}/{head.task}."
    if estimate is None and sources[0].untrained:
        return f"{row.label}: not trained here; its weights were imported."
    had = "no number" if estimate is None else f"{estimate.seeds} of {planned} seeds"
    where = "".join(f", {key} {value}" for key, value in {**head.at, **row.at}.items())
    return f"{row.label}: {had} for {head.task}/{head.column.metric}{where}."


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
        named = "" if value is None else f"{table.split_label} {value}".strip()
        at = {} if value is None else {table.split: value}
        for variant in variants:
            label = variant.get("label") or variant["name"]
            shared = ", ".join(filter(None, [group, named]))
            rows.append(Row(study, variant["name"], label, shared, at))
    return rows


def _heads(column: Column, task: str, rows: list[Row], results: Results) -> list[Head]:
    if not column.axis:
        return [Head(column, task, dict(column.where))]
    wanted = column.values
    if wanted is None:
        done = [result for row in rows for result in results.get(row.study, row.variant, task)]
        wanted = axis_values(done, column.metric, column.axis)
    # A column for which no result exists at all still shows, empty, so that its lack is seen.
    return [Head(column, task, {**column.where, column.axis: value}) for value in wanted] or [
        Head(column, task, dict(column.where))
    ]


def cell_estimate(sources: list[Result], metric: str, at: Mapping[str, Any]) -> Estimate | None:
    """Mean over seeds: bootstrap where the samples' mean is the number, else a normal interval.

    A metric that is not a mean over samples (a perplexity, a ratio) has no such samples, so its
    interval comes from the standard errors that the evaluator gave; so does the interval where
    the sample lines are not the independent samples that the evaluator counted.
    """
    found, stderrs, n = values(sources, metric, at)
    if not found:
        return None
    seeds = [scores for scores in (result.scores(metric, at) for result in sources) if scores]
    counted = sum(map(len, seeds)) == n
    if (
        counted
        and len(seeds) == len(found)
        and all(
            abs(
                sum(total for total, _ in scores.values()) / sum(c for _, c in scores.values())
                - value
            )
            <= 1e-6 * max(1.0, abs(value))
            for scores, value in zip(seeds, found, strict=True)
        )
    ):
        return mean_of_samples(seeds)
    return mean_of_values(found, stderrs, n)


def _mark_best(cells: list[Cell], better: str) -> None:
    """Mark the best cell only if its whole interval lies beyond every other interval."""
    sign = {"higher": 1, "lower": -1}.get(better)
    known = [cell for cell in cells if cell.estimate is not None]
    if sign is None or len(known) < 2:
        return

    def ends(cell: Cell) -> tuple[float, float]:
        estimate = cell.estimate
        assert estimate is not None
        low, high = estimate.low, estimate.high
        if low is None or high is None:
            return (float("-inf"), float("inf"))
        return (low, high) if sign == 1 else (-high, -low)

    best = max(known, key=lambda cell: sign * cell.estimate.value)  # type: ignore[union-attr]
    best.best = all(ends(best)[0] > ends(cell)[1] for cell in known if cell is not best)


def _shorten(notes: list[str], limit: int = 12) -> list[str]:
    if len(notes) <= limit:
        return notes
    left = len(notes) - limit
    return [*notes[:limit], f"{left} more numbers are missing; see the list of missing results."]


def _method(cells: list[list[Cell]]) -> list[str]:
    known = [cell.estimate for line in cells for cell in line if cell.estimate]
    known = [estimate for estimate in known if estimate.method != "none"]
    shown = sorted({estimate.method for estimate in known})
    notes = []
    if shown:
        seeds = sorted({estimate.seeds for estimate in known})
        notes.append(
            f"In brackets: 95 % interval ({'; '.join(shown)}); seeds: {', '.join(map(str, seeds))}."
        )
        if seeds[0] == 1:
            notes.append(
                "With one seed the interval covers the choice of test samples only, "
                "not what another training run would give."
            )
        elif seeds[0] < 5:
            notes.append("With few seeds, intervals that resample seeds are too narrow.")
    if any(cell.best for line in cells for cell in line):
        notes.append("Bold: best of its column, its interval beyond all others.")
    return notes
