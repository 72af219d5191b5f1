"""An Anarchist FAQ: 1.7 million words of modern argument, in essays of questions and answers.

An offline stand-in for web text, always reported under its own name. It is political writing from
one point of view: a model that is trained on much of it writes alike.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from forgetmenot.data.debian_package import read_debian_package
from forgetmenot.data.documents import Document, write_documents
from forgetmenot.data.markup import Rules, paragraphs
from forgetmenot.data.prose import parts
from forgetmenot.errors import UserError
from forgetmenot.files import write_json

PACKAGE = "anarchism"
PAGES = "usr/share/doc/anarchism/html/*.html"
LICENCE = "GPL-2; The Anarchist FAQ Editorial Collective, 1995 to 2017"
# Sections, their introductions and the appendices. Not appendix 1.3, whose pages are the former
# version of section F, nor lists of contents, links, books and news.
ESSAYS = re.compile(r"sec[A-J](\d+|int)|append(11|12|2|3\d|4\d)|intro|vol[12]intro|10years")
# Of the sequences of ten words in these appendices and sections, the shorter of the two shares a
# sixth with the other; no other pair of essays shares a tenth.
REPEATS = {"append41": "secH5", "append43": "secH6"}
SHORTEST = 50  # words of a document, at least
RULES = Rules(
    breaks=re.compile(r"</?(p|div|h\d|li|blockquote|ol|ul|dt|dd|hr|center|td|tr)\b", re.IGNORECASE),
    lines=re.compile(r"<br\b", re.IGNORECASE),
    dropped=frozenset({"head", "table", "pre", "script", "style"}),
)


@dataclass(frozen=True)
class Options:
    """Which package, and where from."""

    # Version of the Debian package `anarchism` that carries the texts.
    version: str = "15.3-3"
    # SHA-256 of its .deb.
    sha256: str = "cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948"
    # Local copy of the .deb, for machines without apt; null = apt.
    archive: str | None = None
    words: int = 5000  # words of a document, about, or fewer

    def __post_init__(self) -> None:
        if self.words < 1:
            raise ValueError(f"words: found {self.words}, allowed: 1 or more")


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Write documents.jsonl, one or more documents a question, and meta.json.

    The group is the page. Raises UserError if the package cannot be had or has no essay.
    """
    members = read_debian_package(PACKAGE, options.version, options.sha256, PAGES, options.archive)
    pages = {PurePosixPath(name).stem: content for name, content in members.items()}
    essays = {name: content for name, content in pages.items() if ESSAYS.fullmatch(name)}
    if not essays:
        raise UserError(f"{PACKAGE}: none of the {len(pages)} pages is an essay")
    counts = write_documents(out / "documents.jsonl", _documents(essays, options.words))
    meta = {"source": "anarchism", "licence": LICENCE}
    meta |= {"package": f"{PACKAGE}={options.version}", "sha256": options.sha256}
    write_json(out / "meta.json", meta | asdict(counts))


def _documents(essays: dict[str, bytes], words: int) -> Iterator[Document]:
    for page, content in essays.items():
        texts = (text for part in _questions(content.decode()) for text in parts(part, words))
        for number, text in enumerate(texts, 1):
            yield {
                "id": f"anarchism/{page}/{number}",
                "text": text,
                "source": "anarchism",
                "group": f"anarchism/{REPEATS.get(page, page)}",
            }


def _questions(page: str) -> Iterator[list[str]]:
    """The paragraphs of each part of a page, cut before its headings.

    A heading with next to nothing under it stays with what follows, and is left out at the end.
    """
    body, *_ = page.partition('<div id="book-navigation')
    part: list[str] = []
    for tag, paragraph in paragraphs(body, RULES):
        if tag == "h2" and _is_text(part):
            yield part
            part = []
        part.append(paragraph)
    if _is_text(part):
        yield part


def _is_text(part: list[str]) -> bool:
    return sum(len(paragraph.split()) for paragraph in part) >= SHORTEST
