"""Public texts whose answers depend on a prompt, from four datasets, in one form of record.

ProSG specification, section 6.9. A corpus folder (train.jsonl, heldout.jsonl) whose documents have
"prompt" (system message, persona or instruction with constraints), "turns" (who says what after
it), "constraints" (checkable, where the source states them) and "text", all of it as one text.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from forgetmenot.data import hub_stream
from forgetmenot.data.documents import CorpusWriter, Document
from forgetmenot.errors import UserError
from forgetmenot.files import write_json

Turn = dict[str, str]
Fields = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Which dataset, and where from."""

    source: Literal["multifaceted", "synthetic-persona-chat", "tulu-personas", "open-character"]
    # Commit of the dataset repository, 40 hexadecimal digits; null = the one pinned here, if any.
    revision: str | None = None
    # Local folder of parquet, JSON-lines or csv files to read instead of the hub; null = the hub.
    mirror: str | None = None
    # Stop after so many records; null = all.
    max_records: int | None = None
    # Share of the records that is held out; records about the same thing stay together.
    heldout_share: float = 0.05
    # Other names of the source's columns, as {expected: actual}, if a copy has renamed them.
    columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        digits = self.revision or "0" * 40
        if len(digits) != 40 or not set(digits) <= set("0123456789abcdef"):
            raise ValueError(
                f"revision: found {self.revision!r}, allowed: a commit of 40 hexadecimal digits"
            )
        if self.max_records is not None and self.max_records < 2:
            raise ValueError(f"max_records: found {self.max_records}, allowed: 2 or more, or null")
        if not 0 < self.heldout_share < 1:
            raise ValueError(
                f"heldout_share: found {self.heldout_share}, allowed: above 0 and below 1"
            )


@dataclass(frozen=True)
class Layout:
    """A dataset: where it is, its licence, the columns it needs, and how a row becomes a record.

    `record` returns "prompt", "turns", "constraints" and "about", what tells groups of records
    apart that must not be split.
    """

    source: hub_stream.Source
    revision: str | None
    licence: str
    columns: dict[str, type]
    record: Callable[[Fields], Fields]


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Write train.jsonl, heldout.jsonl and meta.json from the stream, in constant memory.

    Records without a prompt or an answer are left out. Raises UserError if the source cannot be
    read, and if a row has not the columns that this source is known to have.
    """
    layout = LAYOUTS[options.source]
    unknown = options.columns.keys() - layout.columns.keys()
    if unknown:
        raise UserError(
            f"columns: found {', '.join(sorted(unknown))}; allowed for {options.source}: "
            f"{', '.join(layout.columns)}"
        )
    revision = options.revision or layout.revision
    with CorpusWriter(out, options.heldout_share) as writer:
        rows = hub_stream.rows("prompted_text", layout.source, revision, options.mirror)
        for document in islice(_documents(options, layout, rows), options.max_records):
            writer.add(document)
        meta = writer.meta()
    origin: dict[str, Any] = {"licence": layout.licence, "repository": layout.source.repository}
    # A mirror's files are what was read; that they are of this revision cannot be known from them.
    origin |= {"mirror": True} if options.mirror else {"revision": revision}
    write_json(out / "meta.json", meta | {"origins": {options.source: origin}})


def _documents(
    options: Options, layout: Layout, rows: Iterator[dict[str, Any]]
) -> Iterator[Document]:
    for number, row in enumerate(rows):
        record = layout.record(_fields(options, layout, number, row))
        about = record.pop("about")
        said = [turn for turn in record["turns"] if turn["text"]]
        if not record["prompt"].strip() or not any(t["role"] == "assistant" for t in said):
            continue
        lines = [f"{turn['role']}: {turn['text']}" for turn in said]
        yield {
            "id": f"{options.source}/{number}",
            "group": hashlib.sha256(about.encode()).hexdigest()[:16],
            "source": options.source,
            **record,
            "turns": said,
            "text": "\n".join([record["prompt"], "", *lines]),
        }


def _fields(options: Options, layout: Layout, number: int, row: dict[str, Any]) -> Fields:
    """The needed columns of a row under their expected names, checked."""
    fields = {}
    for name, kind in layout.columns.items():
        actual = options.columns.get(name, name)
        value = row.get(actual)
        if value is None or not isinstance(value, kind):
            raise UserError(
                f"prompted_text: row {number} of {options.source}: column {actual!r} is "
                f"{type(value).__name__}, expected {kind.__name__}; the columns are {sorted(row)}; "
                "name renamed ones in the option `columns`"
            )
        fields[name] = value
    return fields


def _turns(*said: tuple[str, str]) -> list[Turn]:
    return [{"role": role, "text": text.strip()} for role, text in said]


def _multifaceted(row: Fields) -> Fields:
    """The same instruction comes under three system messages: they are one group."""
    turns = _turns(("user", row["prompt"]), ("assistant", row["output"]))
    return {"prompt": row["system"], "turns": turns, "constraints": [], "about": row["prompt"]}


def _persona_chat(row: Fields) -> Fields:
    """The second speaker is the one whose persona is the prompt."""
    turns: list[Turn] = []
    for line in row["Best Generated Conversation"].splitlines():
        match = re.match(r"\s*user (1|2)\s*:\s*(.*)", line, flags=re.IGNORECASE)
        if match:
            turns += _turns(("user" if match[1] == "1" else "assistant", match[2]))
        elif turns:
            turns[-1]["text"] = f"{turns[-1]['text']}\n{line.strip()}".strip()
    persona = row["user 2 personas"].strip()
    return {"prompt": persona, "turns": turns, "constraints": [], "about": persona}


def _tulu(row: Fields) -> Fields:
    """The instruction, constraints included, is the prompt; what follows it are the turns."""
    messages = [(str(message["role"]), str(message["content"])) for message in row["messages"]]
    if messages and messages[0] == ("user", row["prompt"]):
        messages = messages[1:]
    constraints = [str(constraint) for constraint in row["constraints"]]
    turns = _turns(*messages)
    about = row["prompt"]
    return {"prompt": about, "turns": turns, "constraints": constraints, "about": about}


def _open_character(row: Fields) -> Fields:
    """The name of the answer's column is unconfirmed; the option `columns` can name another."""
    turns = _turns(("user", row["question"]), ("assistant", row["character_answer"]))
    about = str(row["character_id"])
    return {"prompt": row["character"], "turns": turns, "constraints": [], "about": about}


LAYOUTS = {
    "multifaceted": Layout(
        hub_stream.Source("kaist-ai/Multifaceted-Collection", "train", file_word="train"),
        "8b0314b36a0a0b5cbd7297ac6e4f9d0fc3422a77",
        "CC BY 4.0",
        {"system": str, "prompt": str, "output": str},
        _multifaceted,
    ),
    "synthetic-persona-chat": Layout(
        hub_stream.Source("google/Synthetic-Persona-Chat", "train", file_word="train"),
        None,
        "CC BY 4.0",
        {"user 2 personas": str, "Best Generated Conversation": str},
        _persona_chat,
    ),
    "tulu-personas": Layout(
        hub_stream.Source(
            "allenai/tulu-3-sft-personas-instruction-following", "train", file_word="train"
        ),
        "debe6eac7717c41200c69ab48d81fe622be67826",
        "ODC-By 1.0",
        {"prompt": str, "messages": list, "constraints": list},
        _tulu,
    ),
    "open-character": Layout(
        hub_stream.Source("xywang1/OpenCharacter", "train", "Synthetic-Dialogue", "dialogue"),
        "9bc9936f62bae21eaf533ffd9cb882d1e9911bc7",
        "Apache-2.0",
        {"character_id": object, "character": str, "question": str, "character_answer": str},
        _open_character,
    ),
}
