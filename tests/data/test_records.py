"""Recall documents: every answer stands in its document, once, above the question."""

import json
from collections import Counter

import numpy as np
import pytest

from forgetmenot.data import bpe_tokenizer, records
from forgetmenot.data.tokenizer_folder import load_tokenizer
from forgetmenot.errors import UserError

SMALL = records.Options(words=200, names=300, values=300, sentences=20)


@pytest.fixture
def folder(corpus, tmp_path):
    bpe, out = tmp_path / "bpe", tmp_path / "records"
    bpe.mkdir()
    out.mkdir()
    bpe_tokenizer.build(bpe_tokenizer.Options(vocab_size=400), {"corpus": corpus}, bpe)
    records.build(SMALL, {"corpus": corpus, "bpe": bpe}, out)
    return out


def training_rng(step):
    return np.random.Generator(np.random.Philox(key=[0, step]))


def scored_texts(tokenizer, labels_T):
    """The scored spans of a row, each as text."""
    scored = labels_T != records.IGNORED
    starts = np.flatnonzero(scored & ~np.append(False, scored[:-1]))
    ends = np.flatnonzero(scored & ~np.append(scored[1:], False)) + 1
    return [tokenizer.decode(labels_T[a:b].tolist()) for a, b in zip(starts, ends, strict=True)]


def test_each_answer_is_the_value_of_its_field(folder):
    tokenizer = load_tokenizer(folder)
    meta = json.loads((folder / "meta.json").read_text())
    stream = records.Stream(folder, records.StreamOptions([64, 256], queries=4))
    answers = 0
    for step in range(6):
        batch = stream.batch(training_rng(step), 1024)
        assert batch["input_ids"].dtype == batch["labels"].dtype == np.int64
        assert batch["input_ids"].shape[1] in (64, 256)
        for ids_T, labels_T in zip(batch["input_ids"], batch["labels"], strict=True):
            assert ids_T[0] == meta["bos_id"]
            scored_T = labels_T[:-1] != records.IGNORED
            assert (labels_T[:-1][scored_T] == ids_T[1:][scored_T]).all()
            text = tokenizer.decode([i for i in ids_T.tolist() if i != meta["pad_id"]])
            pairs = Counter(tuple(line.split(": ")) for line in text.split("\n"))
            for answer in scored_texts(tokenizer, labels_T):
                # above, and again below
                assert any(
                    count > 1 for pair, count in pairs.items() if pair[1:] == (answer[1:-1],)
                )
                answers += 1
    assert answers > 50


def test_names_of_a_document_differ(folder):
    tokenizer = load_tokenizer(folder)
    stream = records.Stream(folder, records.StreamOptions([256], queries=1))
    for step in range(4):
        for ids_T, labels_T in zip(*stream.batch(training_rng(step), 1024).values(), strict=True):
            above = ids_T[: int(np.argmax(labels_T != records.IGNORED))].tolist()
            names = [line.partition(":")[0] for line in tokenizer.decode(above).split("\n")]
            # the last is the one that is asked
            assert len(set(names)) == len(names) - 1


def test_batches_are_functions_of_their_generator(folder):
    stream = records.Stream(folder, records.StreamOptions([64, 128]))
    first, again, other = (stream.batch(training_rng(step), 512) for step in (3, 3, 4))
    assert (first["input_ids"] == again["input_ids"]).all()
    assert (first["labels"] == again["labels"]).all()
    same_shape = first["input_ids"].shape == other["input_ids"].shape
    assert not (same_shape and (first["input_ids"] == other["input_ids"]).all())


def test_parts_have_the_tokens_of_the_whole(folder):
    tokenizer = load_tokenizer(folder)
    stream = records.Stream(folder, records.StreamOptions([256]))
    batch = stream.batch(training_rng(0), 1024)
    pad = json.loads((folder / "meta.json").read_text())["pad_id"]
    for ids_T, labels_T in zip(batch["input_ids"], batch["labels"], strict=True):
        # to the last scored token: a cut of the end would not be a text's
        end = int(np.flatnonzero(labels_T != records.IGNORED)[-1]) + 1
        ids = [i for i in ids_T[1:end].tolist() if i != pad]
        assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False).ids == ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": []}, "lengths"),
        ({"lengths": [63]}, "64 or more"),
        ({"lengths": [64], "queries": 0}, "queries: found 0"),
        ({"lengths": [64], "prose_share": 1.0}, "prose_share: found 1.0"),
    ],
)
def test_stream_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        records.StreamOptions(**options)


@pytest.mark.parametrize("key", ["words", "names", "values", "sentences"])
def test_options_out_of_range(key):
    with pytest.raises(ValueError, match=f"{key}: found 1, allowed: 2 or more"):
        records.Options(**{key: 1})


def test_a_corpus_without_sentences(folder, corpus, tmp_path):
    (corpus / "train.jsonl").write_text('{"id": "a", "text": "no words here"}\n')
    with pytest.raises(UserError, match=r"train\.jsonl: found 0 sentences"):
        records.build(SMALL, {"corpus": corpus, "bpe": folder}, tmp_path)
