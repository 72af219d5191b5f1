"""Document files: one JSON object {"id", "text", "source"} a line, UTF-8.

A *corpus folder* holds train.jsonl and heldout.jsonl, split at document level, and a meta.json with
the documents, words and bytes of each split. Builders of any source write it through CorpusWriter.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

from forgetmenot.errors import UserError

SPLITS = ("train", "heldout")
Document = dict[str, Any]


@dataclass
class Counts:
    """Size of a set of documents: words are separated by white space, bytes are UTF-8."""

    documents: int = 0
    words: int = 0
    bytes: int = 0

    def add(self, text: str) -> None:
        """Count one more document."""
        self.documents += 1
        self.words += len(text.split())
        self.bytes += len(text.encode())


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of a JSON-lines file, one at a time.

    Raises UserError naming the file and line if a line is not an object with "id" and "text".
    """
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            try:
                document = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(document, dict) or not {"id", "text"} <= document.keys():
                raise UserError(f'{path}, line {number}: expected an object with "id" and "text"')
            yield document


def write_documents(path: Path, documents: Iterable[Document]) -> Counts:
    """Write documents as JSON lines and count them. Raises UserError on text that is no Unicode."""
    counts = Counts()
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for document in documents:
            _write_line(file, document, counts)
    return counts


def fraction(key: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the two strings only: a lot drawn without a generator.

    Different purposes draw independent lots for the same key.
    """
    digest = hashlib.sha256(f"{purpose}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class CorpusWriter:
    """Splits a stream of documents into train.jsonl and heldout.jsonl of `out`.

    A document is held out when the lot of its "group", or of its "id" if it has none, is below
    `heldout_share`: documents of one group are never split, and adding or removing other documents
    moves none.
    """

    def __init__(self, out: Path, heldout_share: float) -> None:
        self.out = out
        self.heldout_share = heldout_share
        self.counts: dict[str, dict[str, Counts]] = {}
        self._stack = ExitStack()
        self._files: dict[str, IO[str]] = {}

    def __enter__(self) -> Self:
        for split in SPLITS:
            path = self.out / f"{split}.jsonl"
            file = path.open("w", encoding="utf-8", newline="\n")
            self._files[split] = self._stack.enter_context(file)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, document: Document) -> None:
        """Write one document with "id", "text" and "source" to its split."""
        key = str(document.get("group", document["id"]))
        split = "heldout" if fraction(key, "heldout") < self.heldout_share else "train"
        of_source = self.counts.setdefault(document["source"], {s: Counts() for s in SPLITS})
        _write_line(self._files[split], document, of_source[split])

    def meta(self) -> dict[str, Any]:
        """Sizes per split and per source, for meta.json. Raises UserError if a split is empty."""
        splits = {split: Counts() for split in SPLITS}
        for of_source in self.counts.values():
            for split, counts in of_source.items():
                splits[split].documents += counts.documents
                splits[split].words += counts.words
                splits[split].bytes += counts.bytes
        for split, counts in splits.items():
            if not counts.documents:
                raise UserError(
                    f"{split}: no document; heldout_share {self.heldout_share} is too "
                    f"{'large' if split == 'train' else 'small'} for this number of documents"
                )
        sources = {
            source: {split: asdict(counts) for split, counts in of_source.items()}
            for source, of_source in self.counts.items()
        }
        return {
            "heldout_share": self.heldout_share,
            "splits": {split: asdict(counts) for split, counts in splits.items()},
            "sources": sources,
        }


def _write_line(file: IO[str], document: Document, counts: Counts) -> None:
    try:
        file.write(json.dumps(document, ensure_ascii=False) + "\n")
        counts.add(document["text"])
    except UnicodeEncodeError as error:
        raise UserError(f"document {document['id']}: not valid Unicode text ({error})") from None
