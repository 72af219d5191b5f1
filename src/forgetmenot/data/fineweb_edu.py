"""FineWeb-Edu, the training text of LTE (LTE specification, section 5), through `datasets`.

Read as a stream, from the hub at a pinned revision or from a local mirror, and written as a corpus
folder. Licence: ODC-By 1.0; the texts come from Common Crawl and its terms of use apply.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from forgetmenot.data import hub_stream
from forgetmenot.data.documents import CorpusWriter, Document
from forgetmenot.errors import UserError
from forgetmenot.files import write_json

REPOSITORY = "HuggingFaceFW/fineweb-edu"
LICENCE = "ODC-By 1.0; Common Crawl's terms of use apply to the texts"


@dataclass(frozen=True)
class Options:
    """Which part of the dataset, and where from."""

    # Commit of the dataset repository on the hub, 40 hexadecimal digits: a branch name would move.
    revision: str = "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"
    # Which sample: about 10 or 100 billion GPT-2 tokens.
    subset: Literal["sample-10BT", "sample-100BT"] = "sample-10BT"
    # Stop after so many documents (about 1,000 tokens each); null = the whole sample.
    max_documents: int | None = None
    # Share of the documents that is held out, drawn by a hash of each document's id.
    heldout_share: float = 0.0001
    # Local folder of parquet or JSON-lines files to read instead of the hub; null = the hub.
    mirror: str | None = None

    def __post_init__(self) -> None:
        if len(self.revision) != 40 or not set(self.revision) <= set("0123456789abcdef"):
            raise ValueError(
                f"revision: found {self.revision!r}, allowed: a commit of 40 hexadecimal digits"
            )
        if self.max_documents is not None and self.max_documents < 2:
            raise ValueError(f"max_documents: found {self.max_documents}, allowed: 2 or more")
        if not 0 < self.heldout_share < 1:
            raise ValueError(
                f"heldout_share: found {self.heldout_share}, allowed: above 0 and below 1"
            )


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Write train.jsonl, heldout.jsonl and meta.json from the stream, in constant memory.

    Empty documents are left out. Raises UserError if the hub or the mirror cannot be read, or if
    the rows have no text.
    """
    with CorpusWriter(out, options.heldout_share) as writer:
        for document in islice(_documents(options), options.max_documents):
            writer.add(document)
        meta = writer.meta()
    origin: dict[str, Any] = {
        "licence": LICENCE,
        "repository": REPOSITORY,
        "subset": options.subset,
    }
    # A mirror's files are what was read; that they are of this revision cannot be known from them.
    origin |= {"mirror": True} if options.mirror else {"revision": options.revision}
    write_json(out / "meta.json", meta | {"origins": {"fineweb_edu": origin}})


def _documents(options: Options) -> Iterator[Document]:
    for number, row in enumerate(_rows(options)):
        text = row.get("text")
        if not isinstance(text, str):
            raise UserError(f"fineweb_edu: row {number} has no text; its columns are {sorted(row)}")
        if text.strip():
            identifier = row.get("id") or f"row {number}"
            yield {"id": f"fineweb_edu/{identifier}", "text": text, "source": "fineweb_edu"}


def _rows(options: Options) -> Iterator[dict[str, Any]]:
    source = hub_stream.Source(REPOSITORY, "train", options.subset)
    return hub_stream.rows("fineweb_edu", source, options.revision, _mirror(options))


def _mirror(options: Options) -> str | None:
    if options.mirror is None:
        return None
    # A copy of the whole repository keeps each sample in a folder of its own.
    inside = Path(options.mirror) / "sample" / options.subset.removeprefix("sample-")
    return str(inside) if inside.is_dir() else options.mirror
