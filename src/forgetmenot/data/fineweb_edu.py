"""FineWeb-Edu, the training text of LTE (LTE specification, section 5), through `datasets`.

Read as a stream, from the hub at a pinned revision or from a local mirror, and written as a corpus
folder. Licence: ODC-By 1.0; the texts come from Common Crawl and its terms of use apply.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from forgetmenot.data.documents import CorpusWriter, Document
from forgetmenot.errors import UserError
from forgetmenot.files import write_json

REPOSITORY = "HuggingFaceFW/fineweb-edu"
LICENCE = "ODC-By 1.0; Common Crawl's terms of use apply to the texts"
# Kinds of file that a mirror may hold: the loader of `datasets` and the names it is used for.
MIRROR_KINDS = {"parquet": ("*.parquet",), "json": ("*.jsonl", "*.jsonl.gz")}


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
    from datasets import load_dataset

    if options.mirror is None:
        where = f"{REPOSITORY} at {options.revision} on the hub"
        arguments: dict[str, Any] = {"path": REPOSITORY, "name": options.subset}
        arguments["revision"] = options.revision
    else:
        kind, files = _mirror_files(Path(options.mirror), options.subset)
        where = f"mirror {options.mirror}"
        arguments = {"path": kind, "data_files": [str(file) for file in files]}
    try:
        yield from load_dataset(**arguments, split="train", streaming=True)
    except Exception as error:  # the library, the hub client and the readers raise their own kinds
        hint = "" if options.mirror else "; without the hub, name a local copy in `mirror`"
        raise UserError(f"fineweb_edu: cannot read {where} ({error}){hint}") from error


def _mirror_files(mirror: Path, subset: str) -> tuple[str, list[Path]]:
    # A copy of the whole repository keeps each sample in a folder of its own.
    inside = mirror / "sample" / subset.removeprefix("sample-")
    folder = inside if inside.is_dir() else mirror
    found = {
        kind: sorted(file for pattern in patterns for file in folder.glob(pattern))
        for kind, patterns in MIRROR_KINDS.items()
    }
    kinds = [kind for kind, files in found.items() if files]
    if len(kinds) != 1:
        raise UserError(
            f"mirror: {folder} holds {' and '.join(kinds) or 'no'} data files, allowed: either "
            "*.parquet or *.jsonl(.gz)"
        )
    return kinds[0], found[kinds[0]]
