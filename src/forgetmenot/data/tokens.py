"""A corpus as token ids on disk, and the batches that training draws from it.

Documents are encoded with BOS in front and no EOS, concatenated and packed without a mask between
documents (LTE specification, section 5). A split is one long row of tokens in shards
<split>-00000.bin, <split>-00001.bin, ... of raw little-endian integers; <split>.idx holds, as
int64, the offset of each document's BOS in that row and, last, the row's length.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forgetmenot.data.documents import SPLITS
from forgetmenot.data.inputs import only_input
from forgetmenot.data.token_writer import write_split
from forgetmenot.data.tokenizer_folder import load_tokenizer, read_tokenizer_meta
from forgetmenot.errors import UserError
from forgetmenot.files import write_json


@dataclass(frozen=True)
class Options:
    """How tokens are stored."""

    # Most tokens in one shard file (2 bytes each up to 65,536 pieces, else 4).
    shard_tokens: int = 1_073_741_824

    def __post_init__(self) -> None:
        if self.shard_tokens < 1:
            raise ValueError(f"shard_tokens: found {self.shard_tokens}, allowed: 1 or more")


@dataclass(frozen=True)
class StreamOptions:
    """How training reads the tokens."""

    # Tokens in a training sequence.
    length: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length: found {self.length}, allowed: 1 or more")


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Encode both splits of a corpus folder with a tokenizer folder, in constant memory.

    The two inputs are told apart by their files: train.jsonl marks the corpus, tokenizer.json the
    tokenizer. Also copies the tokenizer and heldout.jsonl, so that the folder suffices for training
    and for perplexity. meta.json: vocab_size, bos_id, eos_id, pad_id, dtype, and per split tokens
    (with BOS), documents, words, bytes and shards. Raises UserError for other inputs.
    """
    corpus = only_input("tokens", inputs, "train.jsonl")
    folder = only_input("tokens", inputs, "tokenizer.json")
    tokenizer_meta = read_tokenizer_meta(folder)
    dtype = np.dtype("<u2" if tokenizer_meta["vocab_size"] <= 2**16 else "<u4")
    tokenizer = load_tokenizer(folder)
    bos_id, limit = tokenizer_meta["bos_id"], options.shard_tokens
    splits = {
        split: write_split(corpus / f"{split}.jsonl", tokenizer, bos_id, dtype, limit, out)
        for split in SPLITS
    }
    shutil.copyfile(corpus / "heldout.jsonl", out / "heldout.jsonl")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, out / name)
    corpus_meta = json.loads((corpus / "meta.json").read_text(encoding="utf-8"))
    kept = {key: tokenizer_meta[key] for key in ("vocab_size", "bos_id", "eos_id", "pad_id")}
    origins = corpus_meta.get("origins", {})
    write_json(
        out / "meta.json", kept | {"dtype": dtype.name, "splits": splits, "origins": origins}
    )


def open_shards(folder: Path, split: str) -> list[np.ndarray]:
    """The shards of a split, memory-mapped, in order.

    Raises UserError if a shard is missing or has not the size that meta.json states.
    """
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    dtype = np.dtype(meta["dtype"]).newbyteorder("<")
    shards: list[np.ndarray] = []
    for shard in meta["splits"][split]["shards"]:
        path = folder / shard["file"]
        found = path.stat().st_size if path.is_file() else 0
        expected = shard["tokens"] * dtype.itemsize
        if found != expected:
            raise UserError(f"{path}: has {found} bytes, expected {expected}; build it again")
        shards.append(np.memmap(path, dtype=dtype, mode="r"))
    return shards


class Stream:
    """Random windows of the training tokens.

    Each window starts anywhere with equal probability, so a run of many passes sees every token in
    many contexts, and a run of less than a pass needs no shuffled copy. Windows do not cross
    shards. Raises UserError if no shard is longer than `length`.
    """

    def __init__(self, path: Path, options: StreamOptions) -> None:
        self.length = options.length
        self.shards = open_shards(path, "train")
        starts = [max(0, len(shard) - options.length) for shard in self.shards]
        self.ends = np.cumsum(starts)
        if not self.ends[-1]:
            raise UserError(
                f"length: found {options.length}, but the longest shard in {path} has "
                f"{max(map(len, self.shards))} tokens, and one more than the length is needed"
            )

    def batch(self, rng: np.random.Generator, tokens: int) -> dict[str, np.ndarray]:
        """`tokens` // length windows (at least one) drawn with `rng`.

        input_ids and labels, int64 [B, length]; labels[b, t] is the token after input_ids[b, t].
        """
        count = max(1, tokens // self.length)
        window_BT = np.empty((count, self.length + 1), dtype=np.int64)
        for row, draw in zip(window_BT, rng.integers(self.ends[-1], size=count), strict=True):
            shard = int(np.searchsorted(self.ends, draw, side="right"))
            start = int(draw - (self.ends[shard - 1] if shard else 0))
            row[:] = self.shards[shard][start : start + self.length + 1]
        return {"input_ids": window_BT[:, :-1].copy(), "labels": window_BT[:, 1:].copy()}
