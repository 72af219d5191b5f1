"""The Jargon File 4.4.7 (2003): essays and some 2,300 entries on the language of hackers.

An offline stand-in for web text, always reported under its own name. Its authors ask to be cited.
"""

import gzip
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from forgetmenot.data.debian_package import read_debian_package
from forgetmenot.data.documents import Document, write_documents
from forgetmenot.data.prose import clean, wrapped_paragraphs
from forgetmenot.errors import UserError
from forgetmenot.files import write_json

PACKAGE = "jargon-text"
MEMBER = "usr/share/doc/jargon-text/jargon.txt.gz"
LICENCE = "public domain"
CITATION = "The on-line hacker Jargon File, version 4.4.7, 29 Dec 2003. Editor: Eric S. Raymond."
INDENT = "   "  # of running text
ENDED = re.compile(r"[.,:;!?)\]\u201d\"]$")  # running text, not a table of contents
SECTION = re.compile(r"(Chapter|Appendix)\s\w+\.\s(.+)|Glossary|Bibliography")
ENTRY = re.compile(r"   :(?P<term>.+?): ?(?P<kind>.*)")
PRONUNCIATION = re.compile(r"/[^/]*/,? ?")
SHORTEST = 12  # words; below that, entries only refer to others


@dataclass(frozen=True)
class Options:
    """Which package, and where from."""

    # Version of the Debian package `jargon-text` that carries the text.
    version: str = "4.4.7-4.1"
    # SHA-256 of its .deb.
    sha256: str = "17d05997e30eb3d5d6713929b8e2f81b63a5f50073858ad2a06701c71f54dcdb"
    # Local copy of the .deb, for machines without apt; null = apt.
    archive: str | None = None


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Write documents.jsonl, an entry or a chapter each, and meta.json.

    Raises UserError if the package cannot be had or its text has no entry.
    """
    members = read_debian_package(PACKAGE, options.version, options.sha256, MEMBER, options.archive)
    lines = gzip.decompress(members[MEMBER]).decode().split("\n")
    counts = write_documents(out / "documents.jsonl", _documents(lines))
    if not counts.documents:
        raise UserError(f"{PACKAGE}: {MEMBER}: found no entry like :term: and no chapter")
    meta = {"source": "jargon", "licence": LICENCE, "citation": CITATION}
    meta |= {"package": f"{PACKAGE}={options.version}", "sha256": options.sha256}
    write_json(out / "meta.json", meta | asdict(counts))


def _documents(lines: list[str]) -> Iterator[Document]:
    for number, (title, body) in enumerate(_texts(lines), 1):
        text = "\n\n".join([title, *_prose(body)])
        if len(text.split()) >= SHORTEST:
            yield {"id": f"jargon/{number}", "text": text, "source": "jargon"}


def _texts(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Titles and lines of chapters and entries. The table of contents and lists of terms are none.

    A heading stands at the margin; so do the letters before the terms of one initial.
    """
    title = ""
    body: list[str] = []
    for line in lines:
        section, entry = SECTION.fullmatch(line), ENTRY.fullmatch(line)
        letter = bool(line.strip()) and not line.startswith(INDENT) and len(line.strip()) == 1
        if section or entry or letter:
            if title:
                yield title, body
            title, body = "", []
        if section:
            title = section[2] or ""
        elif entry:
            kind = PRONUNCIATION.sub("", entry["kind"]).strip()
            title = f"{entry['term']} ({kind})" if kind else entry["term"]
        elif title:
            body.append(line)
    if title:
        yield title, body


def _prose(lines: list[str]) -> Iterator[str]:
    for paragraph in wrapped_paragraphs(lines):
        text = " ".join(line.strip() for line in paragraph)
        heading = not paragraph[0].startswith(" ")
        quoted = any(line.startswith(INDENT + " ") for line in paragraph)
        if heading or (ENDED.search(text) and not (quoted and _is_drawn(text))):
            # Braces mark references to other entries.
            yield clean(re.sub(r"[{}]", "", text))


def _is_drawn(text: str) -> bool:
    """Whether a text that is set in is code, a table or a drawing, rather than a quotation."""
    letters = sum(character.isalpha() or character == " " for character in text)
    return letters < 0.93 * len(text) or "  " in text
