"""The recall suite: answers out of a document (FDA, SWDE, SQuAD, TriviaQA, NQ, DROP).

The sets come from the hub at pinned commits or from a mirror (`hub_sets`). Stand-ins for machines
without the hub have names of their own: squad_dev (SQuAD v1.1 dev), drop_subset (questions of DROP
whose answer stands in the passage), nq_swapped (Natural Questions whose answer was replaced in the
passage) and factbook (field extraction; needs a dataset of the builder `factbook`).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from forgetmenot.data.factbook import FILE as FACTBOOK
from forgetmenot.data.factbook import LICENCE as FACTBOOK_LICENCE
from forgetmenot.data.hub_sets import Row
from forgetmenot.data.hub_sets import read_rows as read_source
from forgetmenot.data.inputs import only_input
from forgetmenot.data.recall_rows import SETS, read_rows
from forgetmenot.data.set_folder import write_sets


@dataclass(frozen=True)
class Options:
    """Which sets, and where from."""

    sets: list[
        Literal[
            "fda",
            "swde",
            "squad",
            "triviaqa",
            "nq_512",
            "nq_1024",
            "nq_2048",
            "drop",
            "squad_dev",
            "drop_subset",
            "nq_swapped",
            "factbook",
        ]
    ]  # which of the sets
    # {set: commit of its hub repository, 40 hexadecimal digits}; null = not known yet.
    revisions: dict[str, str | None] = field(default_factory=dict)
    # Folder to read instead of the hub: <set>.jsonl or the distributor's file, each also as .gz.
    mirror: str | None = None
    samples: int | None = 500  # questions of a set, drawn by a hash of their id; null = all
    # What a set does that neither `revisions` nor `mirror` gives: stop, or be skipped by name.
    missing: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        if not self.sets or len(set(self.sets)) != len(self.sets):
            raise ValueError(f"sets: found {self.sets}, allowed: distinct, at least one")
        unknown = sorted(set(self.revisions) - set(self.sets))
        if unknown:
            raise ValueError(f"revisions: found {unknown}, allowed: {self.sets}")
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples: found {self.samples}, allowed: 1 or more, or null")


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Write <set>.jsonl (see `recall_rows`), meta.json and the tokenizer's files.

    meta.json: the tokenizer's ids, "sets": {set: origin, licence, samples, context} and "skipped":
    {set: reason}. Raises UserError for a set that cannot be had (unless `missing` is skip and
    nothing says where it could be had) or has other columns than it should.
    """

    def read(name: str) -> tuple[list[Row], dict[str, Any]]:
        rows, about = _source(name, options, inputs)
        return list(read_rows(name, rows)), about | {"context": SETS[name].context}

    skip = options.missing == "skip"
    write_sets(
        "recall_suite", options.sets, read, inputs, out, samples=options.samples, skip_missing=skip
    )


def _source(
    name: str, options: Options, inputs: dict[str, Path]
) -> tuple[list[Row], dict[str, Any]]:
    if name == "factbook":
        file = only_input("recall_suite", inputs, FACTBOOK) / FACTBOOK
        with file.open(encoding="utf-8", newline="\n") as lines:
            rows = [json.loads(line) for line in lines]
        return rows, {"dataset": "factbook", "licence": FACTBOOK_LICENCE}
    source = SETS[name].source
    rows, origin = read_source(name, source, options.revisions.get(name), options.mirror)
    return rows, origin | {"licence": source.licence}
