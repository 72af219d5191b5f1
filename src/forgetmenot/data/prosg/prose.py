"""Real prose as words of the world: the most frequent words of a corpus, the rest unknown."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetmenot.data.documents import fraction, read_documents

UNKNOWN = "<unk>"
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+|[.,;:?!]")


@dataclass(frozen=True)
class Prose:
    """Words in a row; nine of `train` for one of `heldout`. `origins`: sources and licences."""

    train: list[str]
    heldout: list[str]
    origins: dict[str, Any]


def read_prose(corpus: Path, tokens: int) -> Prose:
    """About `tokens` words of a corpus folder, a tenth of them from its held-out documents.

    Lower case; punctuation marks are words of their own; whole documents are drawn by lots of
    their ids, as many as needed.
    """
    meta = json.loads((corpus / "meta.json").read_text(encoding="utf-8"))
    wanted = tokens // 10
    heldout = _draw(corpus, "heldout", wanted, meta)[:wanted]
    train = _draw(corpus, "train", 9 * wanted, meta)[: 9 * len(heldout)]
    heldout = heldout[: len(train) // 9]
    return Prose(train[: 9 * len(heldout)], heldout, meta.get("origins", {}))


def frequent_words(words: list[str], count: int, known: set[str]) -> list[str]:
    """The `count` most frequent words that are not `known`, by frequency, then by the alphabet."""
    found = Counter(words)
    ranked = sorted(found.keys() - known, key=lambda word: (-found[word], word))
    return ranked[:count]


def _draw(corpus: Path, split: str, words: int, meta: dict[str, Any]) -> list[str]:
    # Half as much again: a word here is not quite a word of the corpus's own count.
    share = 1.5 * words / max(1, meta["splits"][split]["words"])
    drawn: list[str] = []
    for document in read_documents(corpus / f"{split}.jsonl"):
        if fraction(document["id"], "prosg_pf") < share:
            drawn += _WORD.findall(document["text"].replace("\u2019", "'").lower())
        if len(drawn) >= words:
            break
    return drawn
