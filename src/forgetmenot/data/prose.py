"""Plain text made sane: one form of each character, single spaces, paragraphs without hard wraps.

A paragraph is a string without blank lines; it may hold line breaks where the text is verse.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator


def clean(text: str) -> str:
    """One paragraph with composed characters, single spaces and no invisible characters.

    Line breaks stay, other control characters and Unicode's spaces become a space, and format
    characters (soft hyphens, marks of direction, byte-order marks) go.
    """
    text = unicodedata.normalize("NFC", text)
    kept = (c for c in text if unicodedata.category(c) != "Cf")
    spaced = "".join(" " if unicodedata.category(c) == "Cc" and c != "\n" else c for c in kept)
    lines = (" ".join(line.split()) for line in spaced.split("\n"))
    return "\n".join(line for line in lines if line)


def wrapped_paragraphs(lines: Iterable[str]) -> Iterator[list[str]]:
    """The runs of lines between blank lines, each line with its indent and without its end."""
    run: list[str] = []
    for line in lines:
        if line.strip():
            run.append(line.rstrip())
        elif run:
            yield run
            run = []
    if run:
        yield run


def parts(paragraphs: list[str], words: int) -> list[str]:
    """Paragraphs as documents of about `words` words, or fewer, a blank line between paragraphs.

    All have about the same size, so there is no short rest, and no paragraph is cut.
    """
    sizes = [len(paragraph.split()) for paragraph in paragraphs]
    total = sum(sizes)
    count = -(-total // words)
    documents: list[list[str]] = [[] for _ in range(count)]
    before = 0
    for paragraph, size in zip(paragraphs, sizes, strict=True):
        # A paragraph goes where its middle lies on the line of all words.
        documents[min(count - 1, (2 * before + size) * count // (2 * total))].append(paragraph)
        before += size
    return ["\n\n".join(document) for document in documents if document]


def without_emphasis(text: str) -> str:
    """Text without the underscores that stand around emphasised words in plain-text books."""
    return re.sub(r"(?<!\w)_([^_]+)_(?!\w)", r"\1", text)
