"""Multi-query associative recall: labels against a brute-force reading of the sequence."""

import hashlib
import json

import numpy as np
import pytest

from forgetmenot.data import mqar
from forgetmenot.errors import UserError

DENSE = mqar.Options(pairs=[2, 8], keys=16, values=5, samples=6)
SCATTERED = mqar.Options(pairs=[2, 8], keys=16, values=5, noise=7, context=40, queries=4, samples=6)


def training_rng(seed, step):
    return np.random.Generator(np.random.Philox(key=[seed, step]))


def read_by_hand(input_ids_T, labels_T, options, pairs):
    """Check one sequence token by token; returns the context positions of the keys."""
    context = options.context or 2 * pairs
    memory = {}
    for t in range(0, context, 2):
        key, value = int(input_ids_T[t]), int(input_ids_T[t + 1])
        if key >= options.keys:
            assert min(key, value) >= options.keys + options.values  # noise comes in twos
            assert max(key, value) < options.keys + options.values + options.noise
            continue
        assert key not in memory
        assert options.keys <= value < options.keys + options.values
        memory[key] = (value, t)
    assert len(memory) == pairs
    queried = set()
    for t in range(context, len(input_ids_T), 2):
        key = int(input_ids_T[t])
        assert key not in queried
        queried.add(key)
        assert labels_T[t] == input_ids_T[t + 1] == memory[key][0]
        assert labels_T[t + 1] == -100
    assert (labels_T[:context] == -100).all()
    assert len(queried) == min(options.queries or pairs, pairs)
    return [position for _, position in memory.values()]


@pytest.mark.parametrize("options", [DENSE, SCATTERED], ids=["dense", "scattered"])
def test_built_sequences_are_what_the_task_says(options, tmp_path):
    mqar.build(options, {}, tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["vocab_size"] == options.keys + options.values + options.noise
    assert meta["chance"] == pytest.approx(1 / options.values)
    for pairs in options.pairs:
        input_ids_NT, labels_NT = mqar.load_test(tmp_path, pairs)
        assert input_ids_NT.dtype == labels_NT.dtype == np.int64
        assert len(input_ids_NT) == options.samples
        for input_ids_T, labels_T in zip(input_ids_NT, labels_NT, strict=True):
            read_by_hand(input_ids_T, labels_T, options, pairs)


@pytest.mark.parametrize("options", [DENSE, SCATTERED], ids=["dense", "scattered"])
def test_training_sequences_are_what_the_task_says(options, tmp_path):
    mqar.build(options, {}, tmp_path)
    contexts = None if options.context is None else [options.context] * 2
    queries = None if options.queries is None else [options.queries] * 2
    stream = mqar.Stream(tmp_path, mqar.StreamOptions([2, 8], contexts, queries))
    seen = set()
    for step in range(12):
        batch = stream.batch(training_rng(0, step), 100)
        pairs = int((batch["input_ids"][0, : options.context] < options.keys).sum())
        pairs = pairs if options.context else pairs // 2
        seen.add(pairs)
        assert batch["input_ids"].dtype == batch["labels"].dtype == np.int64
        assert 0 <= 100 - batch["input_ids"].size < batch["input_ids"].shape[1]
        for input_ids_T, labels_T in zip(batch["input_ids"], batch["labels"], strict=True):
            read_by_hand(input_ids_T, labels_T, options, pairs)
    assert seen == {2, 8}


def test_a_sample_does_not_depend_on_the_others(tmp_path):
    mqar.build(SCATTERED, {}, tmp_path)
    input_ids_NT, labels_NT = mqar.load_test(tmp_path, 8)
    for index in (4, 0):
        input_ids_T, labels_T = mqar.sample(SCATTERED, 8, index)
        assert (input_ids_NT[index] == input_ids_T).all()
        assert (labels_NT[index] == labels_T).all()
    more = mqar.Options(**{**vars(SCATTERED), "pairs": [8], "samples": 9})
    mqar.build(more, {}, tmp_path / "more")
    assert (mqar.load_test(tmp_path / "more", 8)[0][:6] == input_ids_NT).all()
    assert len({row.tobytes() for row in mqar.load_test(tmp_path / "more", 8)[0]}) == 9


def test_builds_and_batches_are_deterministic(tmp_path):
    for name in "ab":
        mqar.build(SCATTERED, {}, tmp_path / name)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")]
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    input_ids_NT, labels_NT = mqar.load_test(tmp_path / "a", 8)
    digest = hashlib.sha256(input_ids_NT.tobytes() + labels_NT.tobytes()).hexdigest()
    assert digest[:16] == "a056fb56a5ecaa7b"
    stream = mqar.Stream(tmp_path / "a", mqar.StreamOptions([2, 4]))
    first, again, other = (stream.batch(training_rng(3, step), 64) for step in (7, 7, 8))
    assert (first["input_ids"] == again["input_ids"]).all()
    assert first["input_ids"].tobytes() != other["input_ids"].tobytes()


def test_positions_keys_and_values_are_uniform():
    rng = training_rng(0, 0)
    vocabulary = mqar.Vocabulary(keys=8, values=4, noise=3)
    shape = mqar.layout(vocabulary, 2, 12, 1)
    input_ids_BT, labels_BT = mqar.sequences(rng, 6000, shape, vocabulary)
    is_key_BT = input_ids_BT[:, :12] < 8
    for counts, cells in [
        (is_key_BT[:, ::2].sum(0), 6),
        (np.bincount(input_ids_BT[:, :12][is_key_BT], minlength=8), 8),
        (np.bincount(labels_BT[:, 12] - 8, minlength=4), 4),
    ]:
        expected = counts.sum() / cells
        assert len(counts) == cells
        # Four standard deviations of a binomial count; the seed is fixed.
        assert np.abs(counts - expected).max() < 4 * np.sqrt(expected)
    assert not is_key_BT[:, 1::2].any()
    queried_slot_B = (input_ids_BT[:, :12:2] == input_ids_BT[:, 12:13]).argmax(1)
    first_slot_B = is_key_BT[:, ::2].argmax(1)
    assert abs((queried_slot_B == first_slot_B).mean() - 0.5) < 0.03


def test_queries_come_in_an_order_of_their_own():
    vocabulary = mqar.Vocabulary(keys=8, values=4, noise=0)
    shape = mqar.layout(vocabulary, 4, None, 2)
    input_ids_BT, _ = mqar.sequences(training_rng(0, 1), 4000, shape, vocabulary)
    slots_QB = [(input_ids_BT[:, :8:2] == input_ids_BT[:, t : t + 1]).argmax(1) for t in (8, 10)]
    counts = np.bincount(4 * slots_QB[0] + slots_QB[1], minlength=16).reshape(4, 4)
    assert (np.diag(counts) == 0).all()
    expected = 4000 / 12
    assert np.abs(counts[~np.eye(4, dtype=bool)] - expected).max() < 4 * np.sqrt(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": [17]}, "pairs: found 17, allowed: 1 to keys = 16"),
        ({"context": 14}, "context of 8 pairs: found 14 tokens, allowed: even numbers from 16"),
        ({"context": 41}, "context of 2 pairs: found 41"),
        ({"noise": 0}, "noise = 0"),
    ],
)
def test_impossible_layouts_are_refused(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        mqar.build(mqar.Options(**{**vars(SCATTERED), **change}), {}, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": []}, "pairs: found"),
        ({"pairs": [2, 2]}, "pairs: found"),
        ({"pairs": [2], "values": 0}, "values: found 0"),
        ({"pairs": [2], "noise": -1}, "noise: found -1"),
        ({"pairs": [2], "queries": 0}, "queries: found 0"),
    ],
)
def test_bad_options_name_the_key(options, message):
    with pytest.raises(ValueError, match=message):
        mqar.Options(**options)


def test_bad_stream_options_name_the_key(tmp_path):
    mqar.build(DENSE, {}, tmp_path)
    with pytest.raises(ValueError, match="contexts: found 1 entries, allowed: 2"):
        mqar.StreamOptions([2, 4], contexts=[8])
    with pytest.raises(ValueError, match="queries: found 0"):
        mqar.StreamOptions([2], queries=[0])
    with pytest.raises(ValueError, match="pairs: found"):
        mqar.StreamOptions([])
    with pytest.raises(UserError, match="pairs: found 20"):
        mqar.Stream(tmp_path, mqar.StreamOptions([2, 20]))
    with pytest.raises(UserError, match="pairs: found 3, allowed: \\[2, 8\\]"):
        mqar.load_test(tmp_path, 3)
