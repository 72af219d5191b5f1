"""Short-context language sets as lm-eval's tasks read them, in the columns they have on the hub.

From the hub at pinned commits or from a mirror (`hub_sets`). wikitext2_unk is no set of lm-eval: it
is WikiText-2's test text with rare words replaced by <unk>, a stand-in under its own name.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from forgetmenot.data.hub_sets import HubSet, Row, read_rows, require_columns
from forgetmenot.data.set_folder import write_sets

SETS = {
    "wikitext": HubSet("EleutherAI/wikitext_document_level", "test", "wikitext-2-raw-v1"),
    "lambada_openai": HubSet("EleutherAI/lambada_openai", "test", "default"),
    "piqa": HubSet("baber/piqa", "validation"),
    "hellaswag": HubSet("Rowan/hellaswag", "validation"),
    "winogrande": HubSet("allenai/winogrande", "validation", "winogrande_xl"),
    "arc_easy": HubSet("allenai/ai2_arc", "test", "ARC-Easy"),
    "arc_challenge": HubSet("allenai/ai2_arc", "test", "ARC-Challenge"),
    "social_iqa": HubSet("lighteval/siqa", "validation"),
    "boolq": HubSet("aps/super_glue", "validation", "boolq"),
    "wikitext2_unk": HubSet(
        None, "test", file="wikitext2_test.txt", licence="CC BY-SA 3.0 (Wikipedia)"
    ),
}
COLUMNS = {
    "wikitext": ("page",),
    "lambada_openai": ("text",),
    "piqa": ("goal", "sol1", "sol2", "label"),
    "hellaswag": ("ctx_a", "ctx_b", "activity_label", "endings", "label"),
    "winogrande": ("sentence", "option1", "option2", "answer"),
    "arc_easy": ("question", "choices", "answerKey"),
    "arc_challenge": ("question", "choices", "answerKey"),
    "social_iqa": ("context", "question", "answerA", "answerB", "answerC", "label"),
    "boolq": ("passage", "question", "label"),
    "wikitext2_unk": ("page",),
}


@dataclass(frozen=True)
class Options:
    """Which sets, and where from."""

    sets: list[
        Literal[
            "wikitext",
            "lambada_openai",
            "piqa",
            "hellaswag",
            "winogrande",
            "arc_easy",
            "arc_challenge",
            "social_iqa",
            "boolq",
            "wikitext2_unk",
        ]
    ]  # which of the sets
    # {set: commit of its hub repository, 40 hexadecimal digits}; null = not known yet.
    revisions: dict[str, str | None] = field(default_factory=dict)
    # Folder to read instead of the hub: <set>.jsonl or the distributor's file, each also as .gz.
    mirror: str | None = None
    samples: int | None = None  # rows of a set, drawn by a hash of their id; null = all
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
    """Write <set>.jsonl (the set's own columns and "id"), meta.json and the tokenizer's files.

    meta.json: the tokenizer's ids, "sets": {set: origin, licence, samples} and "skipped": {set:
    reason}. Raises UserError for a set that cannot be had (unless `missing` is skip and nothing
    says where it could be had) or lacks a column.
    """

    def read(name: str) -> tuple[list[Row], dict[str, Any]]:
        source = SETS[name]
        rows, origin = read_rows(name, source, options.revisions.get(name), options.mirror)
        if name == "wikitext2_unk":
            rows = [page for row in rows for page in pages(row["text"])]
        for row in rows:
            require_columns(name, row, COLUMNS[name])
        numbered = [{**row, "id": f"{name}/{number}"} for number, row in enumerate(rows)]
        return numbered, origin | {"licence": source.licence}

    skip = options.missing == "skip"
    write_sets(
        "language_sets", options.sets, read, inputs, out, samples=options.samples, skip_missing=skip
    )


def pages(text: str) -> list[Row]:
    """WikiText's articles, each from its title " = Title = " on."""
    parts = re.split(r"(?m)^(?= = [^=].*[^=] = $)", text)
    return [{"page": part} for part in parts if part.strip()]
