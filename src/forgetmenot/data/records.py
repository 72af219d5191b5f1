"""Recall documents in natural text: lines "field: value", then some of the fields asked again.

So little prose as is at hand does not by itself teach a model to look things up, so the `small`
scale mixes these documents in, at a stated share. Names and values are made of the corpus's
training documents and paired anew in every document, so an answer is in its document alone. Field
extraction sets (factbook here, FDA and SWDE on the hub) have the same form and none of the text.
"""

import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forgetmenot.data.documents import read_documents
from forgetmenot.data.inputs import only_input
from forgetmenot.data.sampling import sample_rng
from forgetmenot.data.tokenizer_folder import load_tokenizer, read_tokenizer_meta
from forgetmenot.errors import UserError
from forgetmenot.files import write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORED = -100
POOLS = "pools.json"
UNITS = ("", "%", " km", " people", " million", " tons")
PER_DOCUMENT = 50  # sentences of one document of the corpus, at most
LINE_TOKENS = 8  # of a short line, about: how many lines are drawn for a row


@dataclass(frozen=True)
class Options:
    """How much is drawn from the corpus, once."""

    words: int = 5000  # most frequent words, of which names and values are made
    names: int = 20_000  # names of fields
    values: int = 20_000  # short values: numbers with units, and one to four words
    sentences: int = 5000  # values too long to be asked for
    seed: int = 0  # of the draw

    def __post_init__(self) -> None:
        for key in ("words", "names", "values", "sentences"):
            if getattr(self, key) < 2:
                raise ValueError(f"{key}: found {getattr(self, key)}, allowed: 2 or more")
        if self.seed < 0:
            raise ValueError(f"seed: found {self.seed}, allowed: 0 or more")


@dataclass(frozen=True)
class StreamOptions:
    """Training documents: each batch draws one length, each row is one document."""

    lengths: list[int]  # tokens of a row
    queries: int = 8  # fields asked, at most; short rows have room for fewer
    prose_share: float = 0.15  # lines whose value is a whole sentence

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 64:
            raise ValueError(f"lengths: found {self.lengths}, allowed: 64 or more each")
        if self.queries < 1:
            raise ValueError(f"queries: found {self.queries}, allowed: 1 or more")
        if not 0 <= self.prose_share < 1:
            raise ValueError(f"prose_share: found {self.prose_share}, allowed: 0 to below 1")


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Write pools.json ({"names", "values", "sentences"}), the tokenizer's files and meta.json.

    The inputs are a corpus folder (train.jsonl) and a tokenizer folder, told apart by their files.
    Raises UserError if the corpus has too few different words or sentences.
    """
    corpus = only_input("records", inputs, "train.jsonl")
    folder = only_input("records", inputs, "tokenizer.json")
    words, sentences = _read(corpus / "train.jsonl", options)
    rng = sample_rng(options.seed, "records")
    names = [" ".join(_draw(rng, words, 3)).capitalize() for _ in range(options.names)]
    pools = {
        "names": list(dict.fromkeys(names)),
        "values": [_value(rng, words) for _ in range(options.values)],
        "sentences": sentences,
    }
    write_json(out / POOLS, pools)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, out / name)
    kept = ("vocab_size", "bos_id", "eos_id", "pad_id")
    meta = read_tokenizer_meta(folder)
    write_json(out / "meta.json", {key: meta[key] for key in kept})


def _read(path: Path, options: Options) -> tuple[list[str], list[str]]:
    """The most frequent words, and sentences from all over the documents."""
    counts: Counter[str] = Counter()
    sentences: dict[str, None] = {}
    for document in read_documents(path):
        text = " ".join(document["text"].split())
        counts.update(re.findall(r"\b[A-Za-z]{3,12}\b", text))
        found = re.findall(r"(?:^|(?<=[.!?] ))[A-Z][^.!?:]{20,200}\.(?= |$)", text)
        step = -(-len(found) // PER_DOCUMENT) or 1
        sentences |= dict.fromkeys(found[::step])
    words = sorted(counts, key=lambda word: (-counts[word], word))[: options.words]
    step = -(-len(sentences) // options.sentences) or 1
    chosen = list(sentences)[::step]
    for key, there in (("words", words), ("sentences", chosen)):
        if len(there) < 2:
            raise UserError(f"records: {path}: found {len(there)} {key}, needs 2 or more")
    return words, chosen


def _draw(rng: np.random.Generator, words: list[str], most: int) -> list[str]:
    return [words[i] for i in rng.integers(len(words), size=rng.integers(1, most + 1))]


def _value(rng: np.random.Generator, words: list[str]) -> str:
    if rng.random() < 0.5:
        number = int(10 ** rng.uniform(1, 7))
        text = f"{number:,}" if rng.random() < 0.5 else str(number / 10)
        return text + UNITS[rng.integers(len(UNITS))]
    drawn = _draw(rng, words, 4)
    return " ".join(drawn).title() if rng.random() < 0.5 else ", ".join(drawn)


class Pool:
    """Texts as tokens: `ids` of each, and their `sizes`."""

    def __init__(self, texts: list[str], tokenizer: "Tokenizer") -> None:
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        self.ids = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        self.sizes = np.array([len(ids) for ids in self.ids])


class Stream:
    """Documents of a built folder: BOS, lines, then queries whose values alone are scored."""

    def __init__(self, path: Path, options: StreamOptions) -> None:
        self.options = options
        self.meta = read_tokenizer_meta(path)
        tokenizer = load_tokenizer(path)
        pools = json.loads((path / POOLS).read_text(encoding="utf-8"))
        # Byte-level BPE splits before spaces and around line breaks, so parts have the tokens that
        # they have within the whole.
        self.names = Pool([f"{name}:" for name in pools["names"]], tokenizer)
        values = [f" {value}\n" for value in [*pools["values"], *pools["sentences"]]]
        self.values = Pool(values, tokenizer)
        self.short = len(pools["values"])

    def batch(self, rng: np.random.Generator, tokens: int) -> dict[str, np.ndarray]:
        """About `tokens` tokens of one length T: input_ids and labels, int64 [B, T]."""
        length = int(self.options.lengths[rng.integers(len(self.options.lengths))])
        rows = max(1, tokens // length)
        document_BT = np.full((rows, length + 1), self.meta["pad_id"], dtype=np.int64)
        labels_BT = np.full((rows, length), IGNORED, dtype=np.int64)
        for row in range(rows):
            ids, scored = self._document(rng, length + 1)
            document_BT[row, : len(ids)] = ids
            labels_BT[row, : len(ids) - 1] = np.where(scored, ids, IGNORED)[1:]
        return {"input_ids": document_BT[:, :-1], "labels": labels_BT}

    def _document(self, rng: np.random.Generator, room: int) -> tuple[np.ndarray, np.ndarray]:
        """At most `room` token ids, and which of them are to be predicted."""
        names = np.unique(rng.integers(len(self.names.ids), size=room // LINE_TOKENS))
        rng.shuffle(names)
        is_short = rng.random(len(names)) >= self.options.prose_share
        short = rng.integers(self.short, size=len(names))
        prose = rng.integers(self.short, len(self.values.ids), size=len(names))
        values = np.where(is_short, short, prose)
        sizes = self.names.sizes[names] + self.values.sizes[values]
        # A quarter of the room is for the queries, which repeat what stands above.
        lines = int(np.searchsorted(np.cumsum(sizes), 3 * room // 4 - 1, side="right"))
        asked = rng.permutation(np.flatnonzero(is_short[:lines]))[: self.options.queries]
        left = room - 1 - int(sizes[:lines].sum())
        asked = asked[np.cumsum(sizes[asked]) <= left]
        parts = [np.array([self.meta["bos_id"]])]
        for n in [*range(lines), *asked]:
            parts += [self.names.ids[names[n]], self.values.ids[values[n]]]
        scored = np.zeros(len(parts), dtype=bool)
        scored[2 + 2 * lines :: 2] = True
        return np.concatenate(parts), np.repeat(scored, [len(part) for part in parts])
