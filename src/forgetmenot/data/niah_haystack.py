"""Haystacks as units of known tokens, so that filling a context needs no tokenising."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forgetmenot.data.documents import fraction, read_documents
from forgetmenot.data.niah_text import NOISE
from forgetmenot.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK_UNITS = 1000  # of which a text to tokenise at once is made
_BEFORE = "."  # stands before the first unit, whose tokens are to be those inside a text
_SENTENCE_END = re.compile(r"[.!?][\"')\]\u201d\u2019]*$")


@dataclass(frozen=True)
class Haystack:
    """A long text in units (words of prose, or whole lines) that are never cut.

    `offsets` int64 [units + 1]: unit u, written after `joiner`, has the tokens
    ids[offsets[u] : offsets[u + 1]] (int64). `starts` int64: the units that begin a sentence.
    """

    units: list[str]
    joiner: str
    ids: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray

    @property
    def tokens(self) -> int:
        """Length of the whole text."""
        return int(self.offsets[-1])


def encode(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Token ids of `text` without special tokens."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def from_units(
    units: list[str], joiner: str, starts: np.ndarray, tokenizer: "Tokenizer"
) -> Haystack:
    """Tokenise units as they stand in a text, after a joiner, and find where each one begins."""
    ids, lengths = [], []
    for first in range(0, len(units), CHUNK_UNITS):
        chunk = [_BEFORE, *units[first : first + CHUNK_UNITS]]
        encoding = tokenizer.encode(joiner.join(chunk), add_special_tokens=False)
        # A unit's characters begin with the joiner before it.
        characters = np.array([len(unit) + len(joiner) for unit in chunk])
        begins = np.cumsum(characters)[:-1] - len(joiner)
        tokens = np.searchsorted([start for start, _ in encoding.offsets], begins)
        ids.append(np.array(encoding.ids[tokens[0] :], dtype=np.int64))
        lengths.append(np.diff([*tokens, len(encoding.ids)]))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return Haystack(units, joiner, np.concatenate(ids), offsets, starts)


def repeated(tokens: int, tokenizer: "Tokenizer") -> Haystack:
    """RULER's noise sentences, one line of five repeated, at least `tokens` tokens in all."""
    line = from_units([NOISE], "\n", np.arange(1), tokenizer)
    lines = -(-tokens // line.tokens)
    return from_units([NOISE] * lines, "\n", np.arange(lines), tokenizer)


def prose(text: str, tokenizer: "Tokenizer") -> Haystack:
    """Prose, its words joined by single spaces as in RULER.

    A sentence ends at a word with final punctuation (RULER asks a trained sentence splitter).
    """
    words = text.split()
    ends = [i for i, word in enumerate(words) if _SENTENCE_END.search(word)]
    starts = np.array([0, *(end + 1 for end in ends if end + 1 < len(words))], dtype=np.int64)
    return from_units(words, " ", starts, tokenizer)


def draw_text(corpus: Path, split: str, words: int) -> str:
    """At most `words` words from all over a corpus folder's split, joined by single spaces.

    Whole documents are drawn by lots of their ids, about as many as needed; their order is kept.
    """
    meta = json.loads((corpus / "meta.json").read_text(encoding="utf-8"))
    share = words / meta["splits"][split]["words"]
    drawn: list[str] = []
    for document in read_documents(corpus / f"{split}.jsonl"):
        if fraction(document["id"], "haystack") < share:
            drawn += document["text"].split()
    return " ".join(drawn[:words])


def read_essays(folder: Path) -> str:
    """The text of all *.txt of a folder, in the order of their names. Raises UserError if none."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]
    if not any(text.strip() for text in texts):
        raise UserError(f"essays: {folder} holds no text; allowed: a folder of *.txt")
    return "\n".join(texts)
