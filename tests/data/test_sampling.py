"""Streams of test samples: one a sample, none shared with training."""

from forgetmenot.data.sampling import sample_rng


def philox_key(*name):
    return tuple(sample_rng(*name).bit_generator.state["state"]["key"].tolist())


def test_each_name_has_its_own_stream():
    names = [
        (seed, task, i, j) for seed in (0, 1) for task in "ab" for i in (1, 11) for j in (1, 2)
    ]
    assert len({philox_key(*name) for name in [*names, (0, "a", 111), (0, "a", 1, 1, 1)]}) == 18
    assert sample_rng(0, "a", 1).random() == sample_rng(0, "a", 1).random()


def test_no_training_stream_is_used():
    """Training's keys are (seed, step) with seeds below 2**63."""
    assert all(philox_key(0, "task", index)[0] >= 2**63 for index in range(200))
