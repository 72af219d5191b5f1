"""Evaluation files: one readable line a sample, reproducible from its seed alone.

The columns are flat, so that the files are a Hugging Face dataset as they stand (`publish.py`).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forgetmenot.data.prosg.batch import probe_rows, prompt_tokens
from forgetmenot.data.prosg.body import MODES
from forgetmenot.data.prosg.items import Cell, draw_items
from forgetmenot.data.prosg.rules import Rule, rules_of
from forgetmenot.data.prosg.templates import KINDS
from forgetmenot.data.prosg.world import World
from forgetmenot.data.sampling import sample_rng
from forgetmenot.errors import UserError
from forgetmenot.files import write_text

COLUMNS: dict[str, str | list[str]] = {
    "id": "string",
    "seed": "string",
    "split": "string",
    "mode": "string",
    "facts": "int64",
    "prompt": "string",
    "distances": ["int64"],
    "body": ["string"],
    "kinds": ["string"],
    "updated": ["bool"],
    "questions": ["string"],
    "answers": ["string"],
    "rule_kinds": ["string"],
    "rule_texts": ["string"],
    "rule_when": ["string"],
    "rule_say": ["string"],
    "sha256": "string",
}
"""Columns of an evaluation file and their types; one in brackets is a list."""


@dataclass(frozen=True)
class Probe:
    """One question at each distance; `answer` is a single word of the pool of its `kind`."""

    kind: str
    updated: bool
    question: str
    answer: str


@dataclass(frozen=True)
class Record:
    """One test sample as text. `body[i]` leads from distance i to distance i + 1.

    In the mode "self" there is no body: the model writes it (`evaluate.prosg_rollout`).
    """

    id: str
    seed: str
    split: str
    mode: str
    facts: int
    prompt: str
    distances: list[int]
    body: list[str]
    probes: list[Probe]
    rules: list[Rule]

    @property
    def sha256(self) -> str:
        """Hash of everything that is rendered."""
        asked = [[p.kind, p.question, p.answer] for p in self.probes]
        ruled = [[r.kind, r.instruction, r.when, r.say] for r in self.rules]
        text = json.dumps([self.prompt, self.distances, self.body, asked, ruled])
        return hashlib.sha256(text.encode()).hexdigest()


def planned(options: Any) -> list[tuple[Cell, list[int]]]:
    """Every cell that `prosg_pf.Options` asks for, and its distances."""
    kinds = tuple(options.rule_kinds)
    return [
        (
            Cell(split, facts, options.rules, options.personas, kinds),
            options.long_distances if split == "long" else options.distances,
        )
        for split in options.splits
        for facts in (options.dense_facts if split == "dense" else options.facts)
    ]


def file_name(split: str, mode: str, facts: int | str) -> str:
    """Path inside the built folder."""
    return f"eval/{split}-{mode}-n{facts}.jsonl"


def draw_record(
    world: World, cell: Cell, mode: str, distances: Sequence[int], probes: int, index: int
) -> Record:
    """Sample `index` of a cell: a pure function of (seed, split, cell, index).

    Prompt and probes are the same in all modes, so that modes can be compared in pairs. Up to
    `probes` facts are asked, and as many persona attributes and rules.
    """
    seed = world.settings["seed"]
    name = f"n{cell.facts}-m{cell.rules}-k{cell.personas}-{'+'.join(cell.rule_kinds)}"
    rng = sample_rng(seed, "prosg_pf", cell.split, name, index)
    items = draw_items(rng, world, cell)
    groups = np.split(np.arange(len(items.kind)), [cell.facts, cell.facts + cell.personas])
    asked = np.concatenate([rng.permutation(group)[:probes] for group in groups])
    flat, sizes = world.templates.render(probe_rows(rng, world, items, asked))
    rendered = np.split(flat, np.cumsum(sizes)[:-1])
    body_rng = sample_rng(seed, "prosg_pf", cell.split, name, mode, index)
    segments = MODES[mode](body_rng, world, items, np.diff(distances).tolist(), held=True)
    return Record(
        id=f"{cell.split}-{mode}-n{cell.facts}-{index:05d}",
        seed=json.dumps([seed, cell.split, name, mode, index]),
        split=cell.split,
        mode=mode,
        facts=cell.facts,
        prompt=world.text(prompt_tokens(world, items)),
        distances=list(distances),
        body=[world.text(segment) for segment in segments],
        probes=[
            Probe(
                KINDS[items.kind[item]],
                bool(items.updated[item]),
                world.text(tokens[:-2]),
                world.text(tokens[-2:-1]),
            )
            for item, tokens in zip(asked, rendered, strict=True)
        ],
        rules=rules_of(world, items),
    )


def write_records(path: Path, records: Sequence[Record]) -> None:
    """One JSON line a sample, with its hash."""
    write_text(path, "".join(f"{json.dumps(_row(record))}\n" for record in records))


def read_records(data_dir: Path, split: str, mode: str, facts: int) -> list[Record]:
    """The samples of one file. Raises UserError when it is missing or a hash does not match."""
    path = data_dir / file_name(split, mode, facts)
    if not path.is_file():
        built = ", ".join(sorted(p.stem for p in (data_dir / "eval").glob("*.jsonl"))) or "none"
        raise UserError(f"{path}: no such evaluation file; built are: {built}")
    with path.open(encoding="utf-8") as file:
        return [_record(path, number, line) for number, line in enumerate(file, start=1)]


def _row(record: Record) -> dict[str, Any]:
    values = {
        "kinds": [probe.kind for probe in record.probes],
        "updated": [probe.updated for probe in record.probes],
        "questions": [probe.question for probe in record.probes],
        "answers": [probe.answer for probe in record.probes],
        "rule_kinds": [rule.kind for rule in record.rules],
        "rule_texts": [rule.instruction for rule in record.rules],
        "rule_when": [rule.when for rule in record.rules],
        "rule_say": [rule.say for rule in record.rules],
    }
    return {name: values[name] if name in values else getattr(record, name) for name in COLUMNS}


def _record(path: Path, number: int, line: str) -> Record:
    row = json.loads(line)
    if row.keys() != COLUMNS.keys():
        raise UserError(
            f"{path}, line {number}: found the columns {', '.join(row)}; "
            f"this version writes {', '.join(COLUMNS)}; build the set again"
        )
    expected = row.pop("sha256")
    asked = [row.pop(name) for name in ("kinds", "updated", "questions", "answers")]
    ruled = [row.pop(name) for name in ("rule_kinds", "rule_texts", "rule_when", "rule_say")]
    record = Record(
        **row,
        probes=[Probe(*fields) for fields in zip(*asked, strict=True)],
        rules=[Rule(*fields) for fields in zip(*ruled, strict=True)],
    )
    if record.sha256 != expected:
        raise UserError(
            f"{path}, line {number}: sha256 is {record.sha256}, the file says {expected}; "
            "the text was changed, build the set again"
        )
    return record
