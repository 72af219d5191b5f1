import json
import tracemalloc

import numpy as np
import pytest

from forgetmenot.data import bpe_tokenizer, tokens
from forgetmenot.data.documents import CorpusWriter
from forgetmenot.data.tokenizer_folder import load_tokenizer
from forgetmenot.errors import UserError
from forgetmenot.files import write_json


@pytest.fixture
def inputs(corpus, tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    bpe_tokenizer.build(bpe_tokenizer.Options(vocab_size=300), {"corpus": corpus}, folder)
    return {"any name": folder, "another": corpus}


def build(inputs, tmp_path, **options):
    out = tmp_path / "tokens"
    out.mkdir(exist_ok=True)
    tokens.build(tokens.Options(**options), inputs, out)
    return out, json.loads((out / "meta.json").read_text())


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=[seed, 5]))


@pytest.mark.parametrize("shard_tokens", [64, 97, 10**6])
def test_shards_are_the_documents_encoded_and_packed(inputs, tmp_path, read_lines, shard_tokens):
    out, meta = build(inputs, tmp_path, shard_tokens=shard_tokens)
    tokenizer = load_tokenizer(out)
    assert meta["vocab_size"] == 300
    assert meta["dtype"] == "uint16"
    assert meta["bos_id"] == 0
    for split in ("train", "heldout"):
        documents = read_lines(inputs["another"] / f"{split}.jsonl")
        rows = [tokenizer.encode(document["text"]).ids for document in documents]
        shards = tokens.open_shards(out, split)
        packed = np.concatenate(shards)
        assert packed.tolist() == [token for row in rows for token in row]
        assert all(len(shard) == shard_tokens for shard in shards[:-1])
        assert 0 < len(shards[-1]) <= shard_tokens
        offsets = np.fromfile(out / f"{split}.idx", dtype="<i8")
        assert offsets.tolist() == np.cumsum([0, *map(len, rows)]).tolist()
        entry = meta["splits"][split]
        assert entry["tokens"] == len(packed)
        assert entry["documents"] == len(documents)
        assert entry["bytes"] == sum(len(d["text"].encode()) for d in documents)
        assert entry["words"] == sum(len(d["text"].split()) for d in documents)
        # One BOS a document, in front, and no EOS.
        assert (packed[offsets[:-1]] == 0).all()
        assert (packed == 0).sum() == len(documents)
        assert (packed == 1).sum() == 0


def test_the_folder_suffices_for_perplexity(inputs, tmp_path):
    out, _ = build(inputs, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (inputs["any name"] / name).read_bytes()
    assert (out / "heldout.jsonl").read_bytes() == (
        inputs["another"] / "heldout.jsonl"
    ).read_bytes()


def test_a_second_build_is_bit_identical(inputs, tmp_path):
    out, _ = build(inputs, tmp_path, shard_tokens=100)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    again = tmp_path / "again"
    again.mkdir()
    tokens.build(tokens.Options(shard_tokens=100), inputs, again)
    assert first == {path.name: path.read_bytes() for path in again.iterdir()}


def test_batches_and_shards_do_not_depend_on_how_documents_are_grouped(
    inputs, tmp_path, monkeypatch
):
    out, _ = build(inputs, tmp_path, shard_tokens=100)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr("forgetmenot.data.token_writer.BATCH_CHARACTERS", 1)
    again = tmp_path / "again"
    again.mkdir()
    tokens.build(tokens.Options(shard_tokens=100), inputs, again)
    assert first == {path.name: path.read_bytes() for path in again.iterdir()}


def test_memory_does_not_grow_with_the_corpus(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("forgetmenot.data.token_writer.BATCH_CHARACTERS", 20_000)
    peaks = []
    for documents in (500, 4000):
        corpus = tmp_path / f"corpus {documents}"
        corpus.mkdir()
        with CorpusWriter(corpus, 0.01) as writer:
            for number in range(documents):
                writer.add({"id": str(number), "text": f"{number} words " * 20, "source": "x"})
            write_json(corpus / "meta.json", writer.meta())
        tracemalloc.start()
        build(inputs | {"another": corpus}, tmp_path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_large_vocabularies_take_four_bytes(inputs, tmp_path):
    path = inputs["any name"] / "meta.json"
    write_json(path, json.loads(path.read_text()) | {"vocab_size": 65_537})
    out, meta = build(inputs, tmp_path)
    assert meta["dtype"] == "uint32"
    size = (out / "train-00000.bin").stat().st_size
    assert size == 4 * meta["splits"]["train"]["tokens"]
    assert tokens.open_shards(out, "train")[0].max() < 300


def test_a_tokenizer_without_bos_is_refused(inputs, tmp_path):
    path = inputs["any name"] / "tokenizer.json"
    value = json.loads(path.read_text()) | {"post_processor": None}
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match="does not put its BOS token 0 before a text"):
        build(inputs, tmp_path)


def test_inputs_are_told_apart_by_their_files(inputs, tmp_path):
    with pytest.raises(UserError, match=r"exactly one input with train.jsonl, found \[\]"):
        build({"any name": inputs["any name"]}, tmp_path)
    two = inputs | {"more": inputs["any name"]}
    with pytest.raises(
        UserError, match=r"one input with tokenizer.json, found .*'any name', 'more'"
    ):
        build(two, tmp_path)


def test_stream_gives_windows_of_the_training_tokens(inputs, tmp_path):
    out, _ = build(inputs, tmp_path, shard_tokens=200)
    shards = tokens.open_shards(out, "train")
    stream = tokens.Stream(out, tokens.StreamOptions(length=16))
    batch = stream.batch(rng(), tokens=16 * 400 + 5)
    assert set(batch) == {"input_ids", "labels"}
    for array in batch.values():
        assert array.shape == (400, 16)
        assert array.dtype == np.int64
        assert array.flags.c_contiguous
    windows = np.concatenate([batch["input_ids"], batch["labels"][:, -1:]], axis=1)
    assert (windows[:, 1:] == batch["labels"]).all()
    inside = {
        tuple(shard[start : start + 17].tolist())
        for shard in shards
        for start in range(len(shard) - 16)
    }
    assert {tuple(window) for window in windows.tolist()} <= inside


def test_every_window_is_equally_likely(tmp_path):
    # Shards of 7 and 4 distinct tokens and windows of 3 + 1: 4 starts in one, 1 in the other.
    np.arange(7, dtype="<u2").tofile(tmp_path / "train-00000.bin")
    np.arange(7, 11, dtype="<u2").tofile(tmp_path / "train-00001.bin")
    shards = [{"file": f"train-0000{n}.bin", "tokens": size} for n, size in enumerate((7, 4))]
    write_json(tmp_path / "meta.json", {"dtype": "uint16", "splits": {"train": {"shards": shards}}})
    stream = tokens.Stream(tmp_path, tokens.StreamOptions(length=3))
    firsts = stream.batch(rng(), tokens=3 * 5000)["input_ids"][:, 0]
    starts, counts = np.unique(firsts, return_counts=True)
    assert starts.tolist() == [0, 1, 2, 3, 7]
    assert abs(counts - 1000).max() < 142  # 5 standard deviations of 28.3


def test_a_batch_is_a_function_of_the_generator_alone(inputs, tmp_path):
    out, _ = build(inputs, tmp_path)
    first = tokens.Stream(out, tokens.StreamOptions(length=32))
    second = tokens.Stream(out, tokens.StreamOptions(length=32))
    first.batch(rng(9), 320)
    for name in ("input_ids", "labels"):
        expected = first.batch(rng(1), 320)[name]
        assert (expected == second.batch(rng(1), 320)[name]).all()
        assert (expected != second.batch(rng(2), 320)[name]).any()
    assert first.batch(rng(1), 1)["input_ids"].shape == (1, 32)


def test_truncated_and_missing_shards_are_refused(inputs, tmp_path):
    out, _ = build(inputs, tmp_path)
    path = out / "train-00000.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(UserError) as error:
        tokens.Stream(out, tokens.StreamOptions(length=8))
    for part in (str(path), str(len(whole) - 2), str(len(whole))):
        assert part in str(error.value)
    path.unlink()
    with pytest.raises(UserError, match=r"train-00000.bin: has 0 bytes"):
        tokens.Stream(out, tokens.StreamOptions(length=8))


def test_length_must_fit(inputs, tmp_path):
    out, meta = build(inputs, tmp_path)
    count = meta["splits"]["train"]["tokens"]
    tokens.Stream(out, tokens.StreamOptions(length=count - 1)).batch(rng(), 1)
    with pytest.raises(UserError, match=f"length: found {count}, .* has {count} tokens"):
        tokens.Stream(out, tokens.StreamOptions(length=count))
    with pytest.raises(ValueError, match="length: found 0"):
        tokens.StreamOptions(length=0)
    with pytest.raises(ValueError, match="shard_tokens: found 0"):
        tokens.Options(shard_tokens=0)
