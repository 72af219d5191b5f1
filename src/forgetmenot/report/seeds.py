"""The single seeds behind the means of a table."""

from forgetmenot.report.tables import EMPTY, Cell, Grid, Head


def columns(grid: Grid) -> list[int]:
    """Which columns have a mean over several seeds that do not all agree by construction."""
    found = zip(*grid.cells, strict=True)
    return [index for index, cells in enumerate(found) if any(map(_is_mean, cells))]


def numbers(cells: list[Cell]) -> list[int]:
    """The seeds that a row's cells are means of, sorted."""
    return sorted({seed for cell in cells if cell.evidence for seed in cell.evidence.values})


def shown(cell: Cell, head: Head, seed: int) -> str:
    """One seed's value, formatted as the mean is."""
    values = cell.evidence.values if cell.evidence else {}
    if seed not in values:
        return EMPTY
    return format(values[seed][0] * head.column.factor, head.column.format)


def exact(cell: Cell) -> str:
    """Every seed's value, unrounded, as "<seed>=<value>;..."."""
    values = cell.evidence.values if cell.evidence else {}
    return ";".join(f"{seed}={values[seed][0]}" for seed in sorted(values))


def _is_mean(cell: Cell) -> bool:
    estimate = cell.estimate
    return estimate is not None and estimate.seeds > 1 and estimate.method != "none"
