"""Schema of `workflow/config/tables/*.yaml` and `workflow/config/claims/*.yaml`.

Self-contained standard dataclasses, so that the configuration can be validated when the workflow
is parsed, without importing anything heavy.
"""

from dataclasses import dataclass, field
from typing import Literal

CONTEXT = "context"  # axis of a model's cost: tokens before the counted one


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
    where: dict[str, int | float | str | bool] = field(default_factory=dict)  # `at` must have these
    format: str = ".3f"  # Python format of the number
    factor: float = 1.0  # numbers are multiplied by this before formatting (100: per cent)
    better: Literal["higher", "lower", "none"] = "none"  # which end is best, for the mark
    optional: bool = False  # not every model has it: an empty cell is then no missing result


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
    order: str = ""  # metric that orders the rows of a group, upwards; empty: the study's order
    split: str = ""  # axis of `at` that gives each of its values rows of its own
    split_label: str = ""  # text before the value of `split` in a row's name
    caption: str = ""  # one or two sentences under the heading
    notes: list[str] = field(default_factory=list)  # printed under the table
    published: str | None = None  # stem of a file in reports/papers/ with other people's figures

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("columns: found an empty list; allowed: one column or more")
        for column in self.columns:
            task = column.task or self.task
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

    @property
    def contexts(self) -> list[int]:
        """Contexts (tokens) at which the columns want the models' cost."""
        return [
            value
            for column in self.columns
            if ((column.task or self.task), column.axis) == ("train", CONTEXT)
            for value in column.values or []
            if isinstance(value, int)
        ]


@dataclass(frozen=True)
class Claim:
    """One testable statement: `better` beats `worse` by more than `margin`, or equals it."""

    paper: str  # lte or prosg
    text: str  # the statement in our words
    source: str  # where the statement is made, and that no number comes with it if so
    study: str  # study of the scale that tests it
    task: str  # task that was scored
    metric: str  # metric of both sides
    better: str  # variant that the statement favours
    worse: str  # the other variant; the same one when a metric or control is compared
    id: str = ""  # short name; filled in from the YAML file's own name
    kind: Literal["greater", "equal"] = "greater"  # equal: the interval lies within the margin
    at: dict[str, int | float | str | list[int | float | str]] = field(default_factory=dict)
    # ^ axis values to pool over: a value or a list of values; an axis left out is pooled wholly
    worse_metric: str | None = None  # metric of the other side if it differs
    worse_at: dict[str, int | float | str] = field(default_factory=dict)  # over `at`, there
    higher_is_better: bool = True  # false for perplexity and other losses
    margin: float = 0.0  # greater: least difference that counts; equal: largest that does not
    control: str | None = None  # variant that shows the task can be learned at this scale
    control_above: float = 0.0  # the control must reach this, else the claim stays undecided
    note: str = ""  # what a reader must know to judge the test

    def __post_init__(self) -> None:
        if self.kind == "equal" and self.margin <= 0:
            raise ValueError(f"margin: found {self.margin}; allowed with kind equal: above 0")
        if self.better == self.worse and not (self.worse_metric or self.worse_at):
            raise ValueError(
                f"worse: found {self.worse!r}, the same as better; allowed: another variant, or "
                "the same with worse_metric or worse_at"
            )
