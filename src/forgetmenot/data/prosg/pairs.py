"""Balanced hold-out of pairs: a share of all (left, right) pairs that training never shows."""

import numpy as np


class PairSplit:
    """Holds out `held` rights for each left, so that every right is held out equally often.

    Seen from left i the rights lie on a ring turned by `turn[i]`; its first `held` places (a
    tenth, at least two so that an update has another value to go to) are held out.
    Balance matters: a value barred more often than others would make the prior non-uniform.
    """

    def __init__(self, lefts: int, rights: int) -> None:
        index = np.arange(lefts)
        self.turn = index % rights if lefts >= rights else index * rights // lefts
        self.rights = rights
        self.held = max(2, round(rights / 10))

    def span(self, held: bool) -> tuple[int, int]:
        """First place and number of places of the chosen side of the hold-out."""
        return (0, self.held) if held else (self.held, self.rights - self.held)

    def draw(self, rng: np.random.Generator, left: np.ndarray, held: bool) -> np.ndarray:
        """A uniform right for each left (int64 [n]) from the held-out or the training pairs."""
        first, size = self.span(held)
        place = first + rng.integers(size, size=len(left))
        return np.asarray((place - self.turn[left]) % self.rights)

    def redraw(
        self, rng: np.random.Generator, left: np.ndarray, right: np.ndarray, held: bool
    ) -> np.ndarray:
        """A uniform right other than the given one, from the same side of the hold-out."""
        first, size = self.span(held)
        place = (right + self.turn[left]) % self.rights - first
        step = rng.integers(1, size, size=len(left))
        return np.asarray((first + (place + step) % size - self.turn[left]) % self.rights)

    def is_held(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Whether the pairs are held out, bool [n]."""
        return np.asarray((right + self.turn[left]) % self.rights < self.held)
