"""Running text that bodies are cut from: a part for training and a part for evaluation only."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np


class RunningText:
    """Sentences in a row, int64 token ids; the last tenth is kept for evaluation."""

    def __init__(self, ids: np.ndarray, stop: int) -> None:
        self.ids, self.stop = ids, stop

    @cached_property
    def ends(self) -> np.ndarray:
        """Positions just after each full stop, ascending, int64."""
        return np.flatnonzero(self.ids == self.stop) + 1

    def region(self, held: bool) -> range:
        """Positions of the part for evaluation (`held`) or of the part for training."""
        border = len(self.ids) * 9 // 10
        return range(border, len(self.ids)) if held else range(border)

    def segments(
        self, rng: np.random.Generator, lengths: Sequence[int], held: bool
    ) -> list[np.ndarray]:
        """Pieces int64 [length], each from a place of its own, that end with a whole sentence."""
        region = self.region(held)
        first = np.searchsorted(self.ends, region.start + np.asarray(lengths))
        last = np.searchsorted(self.ends, region.stop, side="right")
        chosen = self.ends[first + (rng.random(len(lengths)) * (last - first)).astype(np.int64)]
        return [self.ids[end - size : end] for end, size in zip(chosen, lengths, strict=True)]

    def words(self, rng: np.random.Generator, count: int, held: bool) -> np.ndarray:
        """`count` words int64 from the beginning of a sentence on, without full stops."""
        region = self.region(held)
        # A stop follows at most every other token, so twice the count holds enough words.
        last = int(np.searchsorted(self.ends, region.stop - 2 * count - 1, side="right"))
        first = int(np.searchsorted(self.ends, region.start))
        start = int(self.ends[rng.integers(first, max(first + 1, last))])
        piece = self.ids[start : start + 2 * count + 2]
        return np.asarray(piece[piece != self.stop][:count])
