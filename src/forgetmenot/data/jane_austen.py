"""The six novels of Jane Austen (1811 to 1818): 0.7 million words in the public domain.

An offline stand-in for web text, always reported under its own name.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from forgetmenot.data.debian_package import read_debian_package
from forgetmenot.data.documents import Document, write_documents
from forgetmenot.data.prose import clean, without_emphasis, wrapped_paragraphs
from forgetmenot.data.r_strings import read_string_vectors
from forgetmenot.errors import UserError
from forgetmenot.files import write_json

PACKAGE = "r-cran-janeaustenr"
MEMBER = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
LICENCE = "texts: public domain; package: MIT"
CHAPTER = re.compile(r"chapter [\divxlc]+", re.IGNORECASE)
# Not Austen's text: where an edition's volumes start and end, lines of asterisks, an editor's note.
FURNITURE = re.compile(r"(volume [ivx]+|\[.*volume .*|[*\s]+|finis|the end)", re.IGNORECASE)
EDITORS_NOTE = "A NOTE ON THE TEXT"
# LAMBADA's test set has passages of these two chapters, and no other of these novels.
IN_LAMBADA = {"mansfield_park/20", "mansfield_park/32"}


@dataclass(frozen=True)
class Options:
    """Which package, and where from."""

    # Version of the Debian package `r-cran-janeaustenr` that carries the texts.
    version: str = "1.0.0-1"
    # SHA-256 of its .deb.
    sha256: str = "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"
    # Local copy of the .deb, for machines without apt; null = apt.
    archive: str | None = None


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Write documents.jsonl, a chapter each without its number, and meta.json.

    Two chapters that a test set quotes are left out. Raises UserError if the package cannot be had
    or holds no novels as vectors of lines.
    """
    members = read_debian_package(PACKAGE, options.version, options.sha256, MEMBER, options.archive)
    try:
        novels = list(read_string_vectors(members[MEMBER]))
    except ValueError as error:
        raise UserError(f"{PACKAGE}: {MEMBER}: {error}") from None
    counts = write_documents(out / "documents.jsonl", _documents(novels))
    if not counts.documents:
        raise UserError(f"{PACKAGE}: {MEMBER}: found no line like CHAPTER I")
    meta = {"source": "jane_austen", "licence": LICENCE}
    meta |= {"package": f"{PACKAGE}={options.version}", "sha256": options.sha256}
    write_json(out / "meta.json", meta | asdict(counts))


def _documents(novels: list[list[str]]) -> Iterator[Document]:
    for novel in novels:
        title = next(line for line in novel if line).lower().replace(" ", "_")
        for number, paragraphs in enumerate(_chapters(novel), 1):
            name = f"{title}/{number}"
            if name not in IN_LAMBADA:
                text = without_emphasis("\n\n".join(paragraphs))
                yield {"id": f"jane_austen/{name}", "text": text, "source": "jane_austen"}


def _chapters(novel: list[str]) -> Iterator[list[str]]:
    """The paragraphs of each chapter, hard wraps undone; what stands before the first is left out.

    Lines that are set in, such as verse and the heads of letters, keep their breaks.
    """
    chapter: list[str] | None = None
    for lines in wrapped_paragraphs(novel):
        if CHAPTER.fullmatch(lines[0].strip()):
            if chapter:
                yield chapter
            chapter = []
            lines = lines[1:]
        elif lines[0] == EDITORS_NOTE:
            break
        if lines and chapter is not None and not FURNITURE.fullmatch(" ".join(lines).strip()):
            verse = all(line.startswith(" ") for line in lines)
            chapter.append(clean(("\n" if verse else " ").join(lines)))
    if chapter:
        yield chapter
