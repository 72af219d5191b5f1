import json
import math

import numpy as np
import pytest

from forgetmenot.errors import UserError
from forgetmenot.evaluate.position_perplexity import Options, measure, windows
from forgetmenot.evaluate.score import mean_stderr

IDS = [
    list(np.random.default_rng(shard).integers(10, size=size)) for shard, size in ((0, 30), (1, 9))
]


@pytest.fixture
def tokens(tmp_path):
    """Two held-out shards of 30 and 9 tokens."""
    shards = []
    for number, ids in enumerate(IDS):
        file = f"heldout-{number:05d}.bin"
        np.asarray(ids, dtype="<u2").tofile(tmp_path / file)
        shards.append({"file": file, "tokens": len(ids)})
    meta = {"vocab_size": 10, "dtype": "uint16", "splits": {"heldout": {"shards": shards}}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    return tmp_path


def test_loss_by_position_is_that_of_each_window_alone(trigram, tokens):
    options = Options(length=8, bucket=4, batch_size=3)
    metrics, samples = measure(trigram, tokens, options, "cpu")
    rows = [IDS[0][start : start + 9] for start in (0, 8, 16)] + [IDS[1]]
    losses = [[-value for value in trigram.log_probabilities(row)] for row in rows]
    for bucket, position in ((slice(0, 4), 4), (slice(4, 8), 8)):
        means = [sum(row[bucket]) / 4 for row in losses]
        mean, stderr = mean_stderr(means)
        at = {"position": position}
        found = {entry["metric"]: entry for entry in metrics if entry["at"] == at}
        assert found["loss"]["value"] == pytest.approx(mean, rel=1e-5)
        assert found["loss"]["stderr"] == pytest.approx(stderr, rel=1e-4)
        assert found["loss"]["n"] == 4
        assert found["perplexity"]["value"] == pytest.approx(math.exp(mean), rel=1e-5)
        assert [s["loss"] for s in samples if s["at"] == at] == pytest.approx(means, rel=1e-5)


def test_windows_are_disjoint_inside_shards_and_spread(tokens):
    every = windows(tokens, Options(length=4, bucket=2))
    assert every[:, 0].tolist() == IDS[0][0:28:4] + IDS[1][0:8:4]
    assert every[:-1, -1][:6].tolist() == every[1:, 0][:6].tolist()
    some = windows(tokens, Options(length=4, bucket=2, windows=3))
    assert some.tolist() == every[[0, 3, 6]].tolist()


def test_refuses_windows_longer_than_the_shards(trigram, tokens):
    with pytest.raises(UserError, match="length: found 32, but no held-out shard has more tokens"):
        measure(trigram, tokens, Options(length=32, bucket=8), "cpu")


def test_bucket_must_divide_the_length():
    with pytest.raises(ValueError, match="bucket: found 3, allowed: divisors of length 8"):
        Options(length=8, bucket=3)
