"""A weighted mixture of token streams: each batch is a pure function of (seed, step, rank)."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class Stream(Protocol):
    """What a data plugin's `Stream` offers: a batch of about `tokens` tokens, drawn from `rng`."""

    def batch(self, rng: np.random.Generator, tokens: int) -> dict[str, np.ndarray[Any, Any]]:
        """Arrays as in the data plugin contract, a function of `rng` alone."""


class Source(NamedTuple):
    """One member of the mixture: its name in the logs, its stream and its relative weight."""

    name: str
    stream: Stream
    weight: float


class Batch(NamedTuple):
    """The arrays of one micro-batch (keys as in the data plugin contract) and their source."""

    source: str
    arrays: dict[str, np.ndarray[Any, Any]]


class Mixture:
    """Draws every optimizer step's data from one source, chosen with the sources' weights.

    Raises ValueError when there is no source or a weight is not above 0.
    """

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        if not sources or any(source.weight <= 0 for source in sources):
            found = {source.name: source.weight for source in sources}
            raise ValueError(f"data: found weights {found}, allowed: one source or more, above 0")
        self.sources = list(sources)
        self.seed = seed
        weights = np.array([source.weight for source in sources], dtype=np.float64)
        self._edges = np.cumsum(weights / weights.sum())[:-1]

    def _rng(self, step: int, micro: int, rank: int) -> np.random.Generator:
        return np.random.Generator(
            np.random.Philox(key=[self.seed, step], counter=[0, 0, micro, rank])
        )

    def batch(self, step: int, tokens: int, *, micro: int = 0, rank: int = 0) -> Batch:
        """Micro-batch `micro` of rank `rank` at `step`: about `tokens` tokens of one source.

        All ranks and micro-batches of a step use the same source, so that their sequence lengths,
        and with them the time a step takes, stay close. The rest of the draw is their own.
        """
        rng = self._rng(step, 0, 0)
        source = self.sources[int(np.searchsorted(self._edges, rng.random(), side="right"))]
        if micro or rank:
            rng = self._rng(step, micro, rank)
        return Batch(source.name, source.stream.batch(rng, tokens))

    def torch_seed(self, step: int, rank: int = 0) -> int:
        """Seed of torch's generators for `step`: dropout then needs no state in checkpoints."""
        counter = [0, 1, 0, rank]  # a block of the counter that no batch reaches
        philox = np.random.Philox(key=[self.seed, step], counter=counter)
        return int(philox.random_raw()) >> 1
