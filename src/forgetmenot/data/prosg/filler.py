"""Filler grammar: an order-2 Markov chain over word classes, independent of the world.

The next class depends on the last two classes (four successors each); a word of a class is drawn
with Zipf weights. Classes keep the grammar learnable: a chain over the words themselves would have
millions of contexts, and the perplexity of filler would measure memorising instead of harm.
"""

import numpy as np

SENTENCE_WORDS = (4, 9)
"""Shortest and longest sentence in words, without the full stop."""
_SUCCESSORS = (0.4, 0.3, 0.2, 0.1)


def filler_stream(
    rng: np.random.Generator, words: range, classes: int, tokens: int, stop: int
) -> np.ndarray:
    """At least `tokens` filler tokens (int64), whole sentences that each end in `stop`."""
    shortest, longest = SENTENCE_WORDS
    successors = rng.integers(classes, size=(classes, classes, len(_SUCCESSORS)))
    sentences = tokens // (shortest + 1) + 1
    length = rng.integers(shortest, longest + 1, size=sentences)
    enough = int(np.searchsorted(np.cumsum(length + 1), tokens)) + 1
    length = length[:enough]
    grid = np.full((enough, longest + 1), -1)
    before = last = np.zeros(enough, dtype=np.int64)
    thresholds = np.cumsum(_SUCCESSORS)[:-1]
    for place in range(longest):
        branch = np.searchsorted(thresholds, rng.random(enough), side="right")
        before, last = last, successors[before, last, branch]
        grid[:, place] = words.start + _zipf(rng, last, len(words), classes)
    place_BL = np.arange(longest + 1)
    grid[place_BL == length[:, None]] = stop
    return grid[place_BL <= length[:, None]]


def _zipf(rng: np.random.Generator, kind: np.ndarray, words: int, classes: int) -> np.ndarray:
    """Word numbers: word w is of class w mod classes, its rank in the class w // classes."""
    size = (words - kind + classes - 1) // classes
    weight = np.cumsum(1.0 / np.arange(1, words // classes + 2))
    rank = np.searchsorted(weight, rng.random(len(kind)) * weight[size - 1], side="right")
    return np.asarray(rank * classes + kind)
