"""One corpus out of several document sets: duplicates removed, whole documents held out.

The held-out documents serve for perplexity and as haystacks, so no evaluation text is trained on.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetmenot.data.documents import CorpusWriter, Document, read_documents
from forgetmenot.errors import UserError
from forgetmenot.files import write_json


@dataclass(frozen=True)
class Options:
    """How much is held out."""

    # Share of the documents that is held out, drawn by a hash of each document's group or id.
    heldout_share: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.heldout_share < 1:
            raise ValueError(
                f"heldout_share: found {self.heldout_share}, allowed: above 0 and below 1"
            )


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Merge the documents.jsonl of all inputs (by name) into train.jsonl and heldout.jsonl.

    Of documents with the same text the first is kept. meta.json holds documents, words and bytes
    per split and source, and each source's licence. Raises UserError for an input without
    documents.jsonl, a repeated id, or a share that leaves a split empty.
    """
    if not inputs:
        raise UserError("corpus: needs at least one dataset with documents.jsonl, found none")
    origins: dict[str, Any] = {}
    duplicates = 0
    texts: set[bytes] = set()
    ids: set[str] = set()
    with CorpusWriter(out, options.heldout_share) as writer:
        for name, folder in sorted(inputs.items()):
            origins |= _origin(name, folder)
            for document in _read(name, folder):
                if document["id"] in ids:
                    raise UserError(f"corpus: two documents have the id {document['id']}")
                ids.add(document["id"])
                digest = hashlib.sha256(document["text"].encode()).digest()
                if digest in texts:
                    duplicates += 1
                    continue
                texts.add(digest)
                writer.add(document)
        meta = writer.meta()
    write_json(out / "meta.json", meta | {"duplicates": duplicates, "origins": origins})


def _read(name: str, folder: Path) -> Iterator[Document]:
    path = folder / "documents.jsonl"
    if not path.is_file():
        raise UserError(f"corpus: input {name} has no documents.jsonl (looked for {path})")
    return read_documents(path)


def _origin(name: str, folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    if not path.is_file():
        raise UserError(f"corpus: input {name} has no meta.json (looked for {path})")
    kept = ("licence", "citation", "package", "sha256")
    meta = json.loads(path.read_text(encoding="utf-8"))
    return {meta.get("source", name): {key: meta[key] for key in kept if key in meta}}
