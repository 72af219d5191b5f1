"""Multi-query associative recall (MQAR): repeat the value of each queried key.

Task of Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models"
(arXiv 2312.04927). A sequence is a context that holds `pairs` times "key value", then queries
"key value" in another random order. The layout is ours: a context of 2 * pairs tokens is
dense, a longer one scatters the pairs over random even positions among noise tokens.

Token ids: keys are 0 .. keys-1, values follow, noise tokens come last.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forgetmenot.data.sampling import sample_rng
from forgetmenot.errors import UserError
from forgetmenot.files import write_bytes, write_json

IGNORED = -100


@dataclass(frozen=True)
class Options:
    """The built set: vocabulary and test sequences."""

    pairs: list[int]  # numbers of pairs to test, one file each (the evaluation axis)
    keys: int = 64  # key tokens in the vocabulary
    values: int = 64  # value tokens in the vocabulary; chance is 1 / values
    noise: int = 0  # noise tokens in the vocabulary (needed by scattered contexts)
    context: int | None = None  # tokens before the queries; null = dense, 2 * pairs
    queries: int | None = None  # queried pairs, at most; null = every pair
    samples: int = 256  # test sequences per number of pairs
    seed: int = 0  # of the test sequences; they never coincide with training's streams

    def __post_init__(self) -> None:
        for key in ("keys", "values", "samples"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: found {getattr(self, key)}, allowed: 1 or more")
        for key in ("noise", "seed"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}: found {getattr(self, key)}, allowed: 0 or more")
        if not self.pairs or len(set(self.pairs)) != len(self.pairs):
            raise ValueError(f"pairs: found {self.pairs}, allowed: distinct numbers, at least one")
        if self.queries is not None and self.queries < 1:
            raise ValueError(f"queries: found {self.queries}, allowed: 1 or more, or null")


@dataclass(frozen=True)
class StreamOptions:
    """Training sequences: each batch draws one entry i of the lists, uniformly.

    Recall is learned only when short sequences are in the mix from the first step; repeat an
    entry to give it more weight.
    """

    pairs: list[int]  # numbers of pairs
    contexts: list[int] | None = None  # context tokens of entry i; null = dense, 2 * pairs
    queries: list[int] | None = None  # queried pairs of entry i, at most; null = every pair

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError("pairs: found an empty list, allowed: at least one number of pairs")
        for key in ("contexts", "queries"):
            values = getattr(self, key)
            if values is not None and len(values) != len(self.pairs):
                raise ValueError(
                    f"{key}: found {len(values)} entries, allowed: {len(self.pairs)}, as in pairs"
                )
        if self.queries is not None and min(self.queries) < 1:
            raise ValueError(f"queries: found {min(self.queries)}, allowed: 1 or more")


@dataclass(frozen=True)
class Vocabulary:
    """How many token ids serve as keys, values and noise."""

    keys: int
    values: int
    noise: int

    @property
    def size(self) -> int:
        """Number of token ids."""
        return self.keys + self.values + self.noise


@dataclass(frozen=True)
class Layout:
    """One shape of sequence: `context` tokens that hold `pairs` pairs, then `queries` queries."""

    pairs: int
    context: int
    queries: int

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return self.context + 2 * self.queries


def layout(vocabulary: Vocabulary, pairs: int, context: int | None, queries: int | None) -> Layout:
    """The checked layout with null filled in. Raises UserError when the pairs cannot fit."""
    if not 1 <= pairs <= vocabulary.keys:
        raise UserError(f"mqar: pairs: found {pairs}, allowed: 1 to keys = {vocabulary.keys}")
    context = 2 * pairs if context is None else context
    if context < 2 * pairs or context % 2:
        raise UserError(
            f"mqar: context of {pairs} pairs: found {context} tokens, "
            f"allowed: even numbers from {2 * pairs}"
        )
    if context > 2 * pairs and vocabulary.noise < 1:
        raise UserError(
            f"mqar: context of {pairs} pairs: found {context} tokens and noise = 0; "
            f"allowed without noise tokens: {2 * pairs}"
        )
    return Layout(pairs, context, pairs if queries is None else min(queries, pairs))


def _orders(rng: np.random.Generator, rows: int, items: int, taken: int) -> np.ndarray:
    """`taken` distinct numbers below `items` in random order, per row: int64 [rows, taken]."""
    return rng.permuted(np.broadcast_to(np.arange(items), (rows, items)), axis=1)[:, :taken]


def sequences(
    rng: np.random.Generator, rows: int, shape: Layout, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Random sequences: (input_ids, labels), both int64 [rows, shape.tokens].

    labels are -100 but at the queries' keys, where they are the value to predict.
    """
    row_B1 = np.arange(rows)[:, None]
    key_BP = _orders(rng, rows, vocabulary.keys, shape.pairs)
    value_BP = vocabulary.keys + rng.integers(vocabulary.values, size=key_BP.shape)
    pair_BP2 = np.stack([key_BP, value_BP], axis=-1)

    if shape.context > 2 * shape.pairs:
        slot_shape = (rows, shape.context // 2, 2)
        first = vocabulary.keys + vocabulary.values
        context_BS2 = rng.integers(first, vocabulary.size, size=slot_shape)
        context_BS2[row_B1, _orders(rng, rows, shape.context // 2, shape.pairs)] = pair_BP2
    else:
        context_BS2 = pair_BP2
    query_BQ2 = pair_BP2[row_B1, _orders(rng, rows, shape.pairs, shape.queries)]

    input_ids_BT = np.concatenate([context_BS2, query_BQ2], axis=1).reshape(rows, shape.tokens)
    labels_BT = np.full_like(input_ids_BT, IGNORED)
    labels_BT[:, shape.context :: 2] = query_BQ2[..., 1]
    return input_ids_BT, labels_BT


def sample(options: Options, pairs: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Test sequence `index`: (input_ids, labels), int64 [T]; a function of these arguments."""
    vocabulary = Vocabulary(options.keys, options.values, options.noise)
    shape = layout(vocabulary, pairs, options.context, options.queries)
    rng = sample_rng(options.seed, "mqar", pairs, index)
    input_ids_1T, labels_1T = sequences(rng, 1, shape, vocabulary)
    return input_ids_1T[0], labels_1T[0]


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Write test/<pairs>.npz (input_ids and labels, int64 [samples, T]) and meta.json.

    Raises UserError when a number of pairs does not fit the keys or the context.
    """
    for pairs in options.pairs:
        made = [sample(options, pairs, index) for index in range(options.samples)]
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            input_ids=np.stack([input_ids_T for input_ids_T, _ in made]),
            labels=np.stack([labels_T for _, labels_T in made]),
        )
        write_bytes(out / "test" / f"{pairs}.npz", buffer.getvalue())
    write_json(
        out / "meta.json",
        {
            "vocab_size": options.keys + options.values + options.noise,
            "chance": 1 / options.values,
            "keys": options.keys,
            "values": options.values,
            "noise": options.noise,
            "pairs": options.pairs,
            "samples": options.samples,
        },
    )


def load_test(path: Path, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Test sequences of a built folder: (input_ids, labels), both int64 [samples, T].

    Raises UserError when the folder has no test file for `pairs`.
    """
    file = path / "test" / f"{pairs}.npz"
    if not file.exists():
        allowed = json.loads((path / "meta.json").read_text())["pairs"]
        raise UserError(f"{file}: no such file; pairs: found {pairs}, allowed: {allowed}")
    with np.load(file, allow_pickle=False) as arrays:
        return arrays["input_ids"], arrays["labels"]


class Stream:
    """Training batches for a built folder, of which only meta.json is read."""

    def __init__(self, path: Path, options: StreamOptions):
        """Raises UserError when an entry of `options` does not fit the folder's vocabulary."""
        meta = json.loads((path / "meta.json").read_text())
        self.vocabulary = Vocabulary(meta["keys"], meta["values"], meta["noise"])
        nulls = [None] * len(options.pairs)
        self.layouts = [
            layout(self.vocabulary, *entry)
            for entry in zip(
                options.pairs, options.contexts or nulls, options.queries or nulls, strict=True
            )
        ]

    def batch(self, rng: np.random.Generator, tokens: int) -> dict[str, np.ndarray]:
        """About `tokens` tokens of one layout: input_ids and labels, int64 [B, T]."""
        shape = self.layouts[rng.integers(len(self.layouts))]
        rows = max(1, tokens // shape.tokens)
        input_ids_BT, labels_BT = sequences(rng, rows, shape, self.vocabulary)
        return {"input_ids": input_ids_BT, "labels": labels_BT}
