"""Encodes a file of documents into token shards, a batch of documents at a time."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forgetmenot.data.documents import Counts, read_documents
from forgetmenot.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Characters encoded in one call: enough for all cores, little beside the memory of a process.
BATCH_CHARACTERS = 4_000_000


def write_split(
    documents: Path,
    tokenizer: "Tokenizer",
    bos_id: int,
    dtype: np.dtype,
    shard_tokens: int,
    out: Path,
) -> dict[str, Any]:
    """Encode <split>.jsonl to <split>-*.bin and <split>.idx in `out`; return its part of meta.json.

    `dtype` is the integer type of a token on disk. Raises UserError if there is no document, or if
    the tokenizer does not put `bos_id` before a text.
    """
    counts, split = Counts(), documents.stem
    writer = _ShardWriter(out, split, dtype, shard_tokens)
    with (out / f"{split}.idx").open("wb") as index:
        for texts in _batches(documents):
            encodings = tokenizer.encode_batch_fast(texts)
            offsets = np.cumsum([0, *map(len, encodings)])
            np.asarray(writer.tokens + offsets[:-1], dtype="<i8").tofile(index)
            ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), dtype=np.int64)
            if not (ids[offsets[:-1]] == bos_id).all():
                raise UserError(f"tokenizer: it does not put its BOS token {bos_id} before a text")
            writer.write(ids)
            for text in texts:
                counts.add(text)
        np.asarray([writer.tokens], dtype="<i8").tofile(index)
    if not counts.documents:
        raise UserError(f"{documents}: no documents")
    return asdict(counts) | {"tokens": writer.tokens, "shards": writer.shards}


def _batches(documents: Path) -> Iterator[list[str]]:
    texts: list[str] = []
    characters = 0
    for document in read_documents(documents):
        texts.append(document["text"])
        characters += len(document["text"])
        if characters >= BATCH_CHARACTERS:
            yield texts
            texts, characters = [], 0
    if texts:
        yield texts


class _ShardWriter:
    """Appends tokens to numbered files, a new one whenever `shard_tokens` are in the last."""

    def __init__(self, out: Path, split: str, dtype: np.dtype, shard_tokens: int) -> None:
        self.out, self.split, self.dtype, self.shard_tokens = out, split, dtype, shard_tokens
        self.tokens = 0
        self.shards: list[dict[str, Any]] = []

    def write(self, ids: np.ndarray) -> None:
        while len(ids):
            if not self.shards or self.shards[-1]["tokens"] == self.shard_tokens:
                name = f"{self.split}-{len(self.shards):05d}.bin"
                self.shards.append({"file": name, "tokens": 0})
            shard = self.shards[-1]
            part = ids[: self.shard_tokens - shard["tokens"]]
            with (self.out / shard["file"]).open("ab") as file:
                part.astype(self.dtype).tofile(file)
            shard["tokens"] += len(part)
            self.tokens += len(part)
            ids = ids[len(part) :]
