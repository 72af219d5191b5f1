"""Works in the format of SWORD modules: two commentaries on the Bible and a modern translation.

Offline stand-ins for web text, always reported under their own names: Spurgeon's Treasury of David
(1869 to 1885), Henry's Concise Commentary (1706, abridged) and the World English Bible (2022).
A module holds, for each testament, blocks compressed with zlib and an index of them: twelve bytes a
block, namely offset, size and size when decompressed, each a little-endian uint32.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from forgetmenot.data.debian_package import read_debian_package
from forgetmenot.data.documents import Document, write_documents
from forgetmenot.data.markup import Rules, paragraphs
from forgetmenot.data.prose import parts
from forgetmenot.errors import UserError
from forgetmenot.files import write_json


@dataclass(frozen=True)
class Work:
    """Where a work is, and how it is split."""

    package: str  # the Debian package
    module: str  # the folder of the module
    licence: str
    # What is held out together: a chapter, or all, where chapters of a work repeat each other (a
    # psalm in Samuel, Kings in Isaiah and in Chronicles, one gospel in another).
    group: Literal["chapter", "work"]


WORKS = {
    "tdavid": Work("sword-comm-tdavid", "tdavid", "public domain (C. H. Spurgeon)", "chapter"),
    "mhcc": Work("sword-comm-mhcc", "mhcc", "public domain (Matthew Henry)", "chapter"),
    "web": Work("sword-text-web", "engWEB2015eb", "public domain (World English Bible)", "work"),
}
TESTAMENTS = ("ot", "nt")
INDEX = struct.Struct("<III")
CHAPTER = re.compile(r'<chapter\b[^>]*\bsID="([^"]*)"[^>]*>')
CHAPTER_END = re.compile(r'<chapter\b[^>]*\beID=|<div\b[^>]*\btype="book"')
# A title above a list of books, which is left out with it, and one above a table, which is too.
BIBLIOGRAPHY = re.compile(r"WORKS? (UP)?ON THE\b.*PSALM", re.IGNORECASE)
OUTLINE = "Chapter Outline"
MARKS = re.compile(r"\s*(\{\d+\}|[•*])")  # of footnotes, lists and rules
SHORTEST = 20  # words of a document, at least; a chapter below that only refers to another
RULES = Rules(
    breaks=re.compile(r'</?(title|lg|item|list|chapter)\b|<div\b(?![^>]*"x-milestone")'),
    lines=re.compile(r"<(l|lb)\b"),
    dropped=frozenset({"note", "table"}),
)


@dataclass(frozen=True)
class Options:
    """Which work, and where from."""

    # The Treasury of David, Henry's Concise Commentary, or the World English Bible.
    work: Literal["tdavid", "mhcc", "web"] = "tdavid"
    # Version of the Debian package that carries the work (`sword-comm-tdavid` for tdavid).
    version: str = "2.1-1"
    # SHA-256 of its .deb.
    sha256: str = "bcbfad701c5c4a061475b58309cebc42755a59e87478c8355227c5e046412b3f"
    # Local copy of the .deb, for machines without apt; null = apt.
    archive: str | None = None
    words: int = 5000  # words of a document, about, or fewer

    def __post_init__(self) -> None:
        if self.words < 1:
            raise ValueError(f"words: found {self.words}, allowed: 1 or more")


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Write documents.jsonl, one or more documents a chapter, and meta.json.

    Raises UserError if the package cannot be had, or is no module with compressed chapters.
    """
    work = WORKS[options.work]
    pattern = f"usr/share/sword/modules/*/{work.module}/?t.?z[sz]"
    members = read_debian_package(
        work.package, options.version, options.sha256, pattern, options.archive
    )
    text = "".join(block for testament in TESTAMENTS for block in _blocks(members, testament))
    documents = _documents(text, options, work)
    counts = write_documents(out / "documents.jsonl", documents)
    if not counts.documents:
        raise UserError(f"{work.package}: found no chapter in {', '.join(members)}")
    meta = {"source": options.work, "licence": work.licence}
    meta |= {"package": f"{work.package}={options.version}", "sha256": options.sha256}
    write_json(out / "meta.json", meta | asdict(counts))


def _blocks(members: dict[str, bytes], testament: str) -> Iterator[str]:
    indexes = [name for name in members if re.search(rf"/{testament}\.\wzs$", name)]
    for index in indexes:
        name = f"{index[:-1]}z"
        if name not in members:
            raise UserError(f"{index} is an index of {name}, which is missing")
        try:
            for offset, size, _ in INDEX.iter_unpack(members[index]):
                if size:
                    yield zlib.decompress(members[name][offset : offset + size]).decode()
        except (struct.error, zlib.error, UnicodeDecodeError) as error:
            raise UserError(f"{name}: not blocks of text compressed with zlib ({error})") from None


def _documents(text: str, options: Options, work: Work) -> Iterator[Document]:
    # What stands before the first chapter, and between books, is prefaces and titles.
    _, *pieces = CHAPTER.split(text)
    for chapter, piece in zip(pieces[::2], pieces[1::2], strict=True):
        prose = list(_chapter(CHAPTER_END.split(piece, maxsplit=1)[0]))
        for number, part in enumerate(parts(prose, options.words), 1):
            if len(part.split()) < SHORTEST:
                continue
            yield {
                "id": f"{options.work}/{chapter}/{number}",
                "text": part,
                "source": options.work,
                "group": f"{options.work}/{chapter}" if work.group == "chapter" else options.work,
            }


def _chapter(markup: str) -> Iterator[str]:
    kept = True
    for tag, paragraph in paragraphs(markup, RULES):
        if tag == "title":
            kept = not BIBLIOGRAPHY.match(paragraph)
        text = MARKS.sub("", paragraph)
        if kept and text and text != OUTLINE:
            yield text
