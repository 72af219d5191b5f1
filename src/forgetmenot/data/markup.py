"""Paragraphs out of HTML and OSIS, tolerant of elements that are left open or overlap.

Both mark a paragraph in several ways, and the texts read here do not always nest, so tags are taken
one by one and no tree is built.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

from forgetmenot.data.prose import clean

TOKEN = re.compile(r"<!--.*?-->|</?[a-zA-Z!?][^<>]*>|[^<]+|<", re.DOTALL)
NAME = re.compile(r"</?\s*([\w:]+)")


@dataclass(frozen=True)
class Rules:
    """What the tags of one kind of markup mean; tags that are not named leave no trace."""

    # Matches the tags at which a new paragraph begins.
    breaks: re.Pattern[str]
    # Matches the tags at which a new line begins.
    lines: re.Pattern[str]
    # Elements that are left out with their content, such as notes and tables.
    dropped: frozenset[str]


def paragraphs(markup: str, rules: Rules) -> Iterator[tuple[str, str]]:
    """Pairs (tag, paragraph): the name of the last tag that began a paragraph, and clean text.

    White space means nothing but a space, and paragraphs without text are left out. The tag is ""
    before the first one, and the same for the start and the end of an element.
    """
    tag = ""
    depth = 0  # of dropped elements around the current place
    gap = False  # whether something was dropped since the last text
    text: list[str] = []
    for token in TOKEN.findall(markup):
        if len(token) > 1 and token[0] == "<":
            name = _name(token)
            if name in rules.dropped and not token.endswith("/>"):
                depth = max(0, depth + (-1 if token[1] == "/" else 1))
                gap = True
            elif not depth and rules.breaks.match(token):
                if paragraph := clean("".join(text)):
                    yield tag, paragraph
                tag, text, gap = name, [], False
            elif not depth and rules.lines.match(token):
                text.append("\n")
        elif not depth:
            words = re.sub(r"\s+", " ", html.unescape(token))
            # A note stands right after a word, often without a space before the next one.
            text.append(f" {words}" if gap and words[:1].isalnum() else words)
            gap = False
    if paragraph := clean("".join(text)):
        yield tag, paragraph


def _name(token: str) -> str:
    match = NAME.match(token)
    return match[1].lower() if match else ""
