"""Schema of `workflow/config/tables/*.yaml` and `workflow/config/claims/*.yaml`.

Self-contained standard dataclasses, so that the configuration can be validated when the workflow
is parsed, without importing anything heavy.
"""

from dataclasses import dataclass, field
from typing import Literal

CONTEXT = "context"  # axis of a model's cost: tokens before the counted one
DISTANCES, SHARES = "distances", "shares"  # bounds that depend on the results


@dataclass(frozen=True)
class Column:
    """One metric of a table; with `axis` it becomes one column for each value of that axis."""

    metric: str  # metric name in results.json, or of the pseudo-task `train` (report/training.py)
    header: str  # heading; with an axis the value is written after it
    task: str = ""  # task the metric belongs to; empty: the table's task
    axis: str = ""  # axis of `at` to spread over columns (for example pairs, length, distance)
    axis_label: str = ""  # name and unit of the axis, for figures
    label: str = ""  # name and unit of the metric, for figures; empty: not drawn
    values: list[int | float | str] | None = None  # axis values to show; null: every one found
    where: dict[str, int | float | str | bool] = field(
        default_factory=dict
    )  # `at` must have these;
    # ^ "longest": the largest value that is there
    pool: bool = False  # the mean over all axis values that agree with `where`
    format: str = ".3f"  # Python format of the number
    factor: float = 1.0  # numbers are multiplied by this before formatting (100: per cent)
    bounds: list[float | None] | Literal["distances", "shares"] | None = None
    # ^ least and greatest value that it can have (null = no such value): intervals end there.
    # ^ "distances": 0 and the longest distance that was asked. "shares": a share of the capture
    # ^ above chance, so what accuracies of 0 and 1 would give (report/bounds.py)
    better: Literal["higher", "lower", "none"] = "none"  # which end is best, for the mark
    optional: bool = False  # not every model has it: an empty cell is then no missing result

    def __post_init__(self) -> None:
        if isinstance(self.bounds, list) and len(self.bounds) != 2:
            raise ValueError(f"bounds: found {self.bounds}; allowed: two numbers or null, or null")


@dataclass(frozen=True)
class Table:
    """One table: rows are the variants of a study, columns are metrics.

    Without `study` it covers every study of its paper that has its task, so that one file serves
    all scales, whatever they call their studies.
    """

    title: str  # heading in the report
    paper: str  # paper whose claim the table is about: lte or prosg
    columns: list[Column]  # from left to right
    name: str = ""  # file name of the table; filled in from the YAML file's own name
    study: str = ""  # study whose variants are the rows; empty: all with its paper and task
    task: str = ""  # default task of the columns; `train` means the training run itself
    rows: list[str] | None = None  # variants to show, in order; null: the study's own list
    only_scored: bool = False  # rows of which no number was asked are left out
    order: str = ""  # metric that orders the rows of a group, upwards; empty: the study's order
    split: str = ""  # axis of `at` that gives each of its values rows of its own
    split_label: str = ""  # text before the value of `split` in a row's name
    caption: str = ""  # one or two sentences under the heading
    notes: list[str] = field(default_factory=list)  # printed under the table
    published: str | list[str] | None = None  # other people's figures: "<file in reports/papers/>"
    # ^ for all of its tables, or "<file>.<table's name>" for one
    frontier: list[str] | None = None  # two metrics of columns without axis: a figure of the second
    # ^ over the first, which says who gets most for least

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("columns: found an empty list; allowed: one column or more")
        for column in self.columns:
            task = column.task or self.task
            if column.pool and column.axis:
                raise ValueError(
                    f"columns: {column.metric!r}: found pool with an axis; allowed: one"
                )
            if not task:
                raise ValueError(f"columns: {column.metric!r} has no task and the table has none")
            counts = all(isinstance(value, int) for value in column.values or [""])
            if (task, column.axis) == ("train", CONTEXT) and not counts:
                raise ValueError(
                    f"columns: {column.metric!r}: values: found {column.values}; allowed with axis "
                    f"{CONTEXT}: whole numbers of tokens"
                )
        metrics = {column.metric for column in self.columns}
        if self.order and self.order not in metrics:
            raise ValueError(f"order: found {self.order!r}; allowed: {', '.join(sorted(metrics))}")
        if self.frontier is not None:
            single = sorted({column.metric for column in self.columns if not column.axis})
            if len(self.frontier) != 2 or not set(self.frontier) <= set(single):
                raise ValueError(
                    f"frontier: found {self.frontier}; allowed: two of {', '.join(single)}"
                )

    @property
    def contexts(self) -> list[int]:
        """Contexts (tokens) at which the columns want the models' cost."""
        return [
            value
            for column in self.columns
            if (column.task or self.task) == "train"
            for value in (column.values or [] if column.axis == CONTEXT else [])
            if isinstance(value, int)
        ]


Value = int | float | str
LONGEST, FIRST_FULL, BEYOND_WINDOW = "longest", "first-full", "beyond-window"
RELATIVE_PLACES = (LONGEST, FIRST_FULL, BEYOND_WINDOW)


@dataclass(frozen=True)
class Claim:
    """One testable statement: each of `better` beats each of `worse` by more than `margin`.

    Every pair of variants is one comparison; the claim holds if all of them do. Axis values may be
    given as places that differ between scales: "longest" (the largest value), "beyond-window" (all
    values above the largest window of the study's models) and "first-full" (the smallest value at
    which window and budget of every model are filled).
    """

    paper: str  # lte or prosg
    text: str  # the statement in our words
    source: str  # where the statement is made, and that no number comes with it if so
    study: str  # study of the scale that tests it
    task: str | list[str]  # task that was scored, or the first of these that was; `train` means
    # ^ the model itself (its cost)
    metric: str  # metric of both sides
    better: str | list[str]  # variants that the statement favours
    worse: str | list[str] = field(default_factory=list)  # the others; empty: each one itself
    id: str = ""  # short name; filled in from the YAML file's own name
    number: str = ""  # the paper's claim that this tests: L1 to L6, P1 to P4
    kind: Literal["greater", "equal"] = "greater"  # equal: the interval lies within the margin
    at: dict[str, Value | list[Value]] = field(default_factory=dict)
    # ^ axis values to pool over: a value or a list of values; an axis left out is pooled wholly
    worse_metric: str | None = None  # metric of the other side if it differs
    worse_at: dict[str, Value] = field(default_factory=dict)  # over `at`, there
    higher_is_better: bool = True  # false for perplexity and other losses
    relative: bool = False  # differences as a share of the other side's value
    trend: str = ""  # axis: the difference must grow along it (per doubling of 1 + its value)
    margin: float = 0.0  # greater: least difference that counts; equal: largest that does not
    matched: str = ""  # metric in which both sides must agree, else the claim stays undecided
    matched_within: float = 0.0  # the largest difference in `matched` that counts as agreement
    control: str | None = None  # variant that shows the task can be learned at this scale
    control_above: float = 0.0  # the control must reach this, else the claim stays undecided
    worse_above: float | None = (
        None  # each of `worse` must reach this at some axis values: one that
    )
    # ^ never learned the task has not forgotten anything; null = not asked
    note: str = ""  # what a reader must know to judge the test

    def __post_init__(self) -> None:
        if self.kind == "equal" and self.margin <= 0:
            raise ValueError(f"margin: found {self.margin}; allowed with kind equal: above 0")
        if self.matched and self.matched_within <= 0:
            raise ValueError(f"matched_within: found {self.matched_within}; allowed: above 0")
        if self.relative and self.trend:
            raise ValueError("relative: found true; allowed with trend: false")
        same = any(better == worse for better, worse in self.pairs)
        if same and not (self.worse_metric or self.worse_at):
            raise ValueError(
                f"worse: found {self.worse!r}, the same as better; allowed: another variant, or "
                "the same with worse_metric or worse_at"
            )

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The comparisons: (favoured variant, other variant)."""
        better, worse = listed(self.better), listed(self.worse)
        return [(one, other) for one in better for other in worse or [one]]

    @property
    def contexts(self) -> list[int]:
        """Contexts (tokens) at which the claim wants the models' cost."""
        sides = (self.at.get(CONTEXT), self.worse_at.get(CONTEXT)) if "train" in self.task else ()
        return [value for value in sides if isinstance(value, int)]

    @property
    def variants(self) -> list[str]:
        """Every variant that the claim names, once."""
        control = [] if self.control is None else [self.control]
        return list(dict.fromkeys([*listed(self.better), *listed(self.worse), *control]))


def listed(value: str | list[str] | None) -> list[str]:
    """One text or several, as a list."""
    return [value] if isinstance(value, str) else list(value or [])
