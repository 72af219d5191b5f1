import numpy as np
import pytest

from forgetmenot.train.mixture import Mixture, Source


class Draws:
    def batch(self, rng: np.random.Generator, tokens: int) -> dict[str, np.ndarray]:
        return {"input_ids": rng.integers(1 << 40, size=(1, tokens))}


SOURCES = [Source("a", Draws(), 3.0), Source("b", Draws(), 1.0)]


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    forward = [Mixture(SOURCES, 5).batch(step, 4) for step in range(20)]
    mixture = Mixture(SOURCES, 5)
    backward = [mixture.batch(step, 4) for step in reversed(range(20))][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert one.source == other.source
        np.testing.assert_array_equal(one.arrays["input_ids"], other.arrays["input_ids"])
    other_seed = Mixture(SOURCES, 6).batch(0, 4)
    assert not np.array_equal(forward[0].arrays["input_ids"], other_seed.arrays["input_ids"])


def test_the_rng_is_philox_keyed_by_seed_and_step() -> None:
    rng = np.random.Generator(np.random.Philox(key=[5, 9]))
    rng.random()  # the choice of the source
    found = Mixture(SOURCES[:1], 5).batch(9, 4).arrays["input_ids"]
    np.testing.assert_array_equal(found, rng.integers(1 << 40, size=(1, 4)))


def test_ranks_and_micro_batches_share_the_source_and_nothing_else() -> None:
    mixture = Mixture(SOURCES, 5)
    for step in range(20):
        parts = [mixture.batch(step, 2, micro=m, rank=r) for m in range(2) for r in range(2)]
        assert len({part.source for part in parts}) == 1
        assert len({part.arrays["input_ids"].tobytes() for part in parts}) == 4


def test_sources_are_drawn_with_their_weights() -> None:
    mixture = Mixture(SOURCES, 5)
    share = np.mean([mixture.batch(step, 1).source == "a" for step in range(2000)])
    assert abs(share - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 2000)


def test_torch_seeds_differ_by_step_and_rank() -> None:
    mixture = Mixture(SOURCES, 5)
    seeds = {mixture.torch_seed(step, rank) for step in range(50) for rank in range(2)}
    assert len(seeds) == 100


@pytest.mark.parametrize("sources", [[], [Source("a", Draws(), 0.0)]])
def test_weights_must_be_above_zero(sources: list[Source]) -> None:
    with pytest.raises(ValueError, match="weights"):
        Mixture(sources, 0)
