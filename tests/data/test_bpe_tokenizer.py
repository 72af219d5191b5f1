import json
import os
import subprocess
import sys

import pytest

from forgetmenot.data import bpe_tokenizer
from forgetmenot.data.tokenizer_folder import load_tokenizer, read_tokenizer_meta
from forgetmenot.errors import UserError

SIZE = 320


@pytest.fixture
def folder(corpus, tmp_path):
    out = tmp_path / "tokenizer"
    out.mkdir()
    bpe_tokenizer.build(bpe_tokenizer.Options(vocab_size=SIZE), {"corpus": corpus}, out)
    return out


def test_meta_and_special_tokens(folder):
    meta = read_tokenizer_meta(folder)
    assert meta == {
        "vocab_size": SIZE,
        "bos_id": 0,
        "eos_id": 1,
        "pad_id": 2,
        "kind": "byte-level BPE",
    }
    assert load_tokenizer(folder).get_vocab_size() == SIZE


@pytest.mark.parametrize("text", ["In 1790, 3,929,214 people.", "naïve 東京 🙂\t\n  x", "", "\x00"])
def test_any_text_survives_with_bos_and_without_eos(folder, text):
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(text).ids
    assert ids[0] == 0
    assert ids.count(0) == 1
    assert 1 not in ids
    assert tokenizer.decode(ids) == text


def test_digits_are_single_tokens(folder):
    encoding = load_tokenizer(folder).encode("in 1790 and 22")
    digits = [token for token in encoding.tokens if any(c.isdigit() for c in token)]
    assert digits == list("179022")
    parts = load_tokenizer(folder).pre_tokenizer.pre_tokenize_str("1790")
    assert [part for part, _ in parts] == list("1790")


def test_merges_are_learned_from_the_text(folder, paragraphs):
    tokenizer = load_tokenizer(folder)
    text = paragraphs[-2]
    assert len(tokenizer.encode(text).ids) < 0.75 * len(text.encode())


def test_text_that_spells_a_special_token_stays_text(folder):
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("a </s><pad> b").ids
    assert not {1, 2} & set(ids)
    assert tokenizer.decode(ids) == "a </s><pad> b"


def test_another_process_trains_the_same_file(folder, corpus, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    code = (
        "import sys; from pathlib import Path; from forgetmenot.data import bpe_tokenizer as b;"
        f"b.build(b.Options(vocab_size={SIZE}), {{'c': Path(sys.argv[1])}}, Path(sys.argv[2]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(corpus), str(again)]
    subprocess.run(command, check=True, env=environment)
    assert (again / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_heldout_text_and_text_beyond_max_bytes_is_not_learned_from(corpus, tmp_path, read_lines):
    train = read_lines(corpus / "train.jsonl")
    size = json.loads((corpus / "meta.json").read_text())["splits"]["train"]["bytes"]
    sampled = list(bpe_tokenizer._sample(corpus, size // 2))
    texts = [document["text"] for document in train]
    assert 0 < len(sampled) < len(texts)
    assert set(sampled) < set(texts)
    assert list(bpe_tokenizer._sample(corpus, size)) == texts


def test_too_little_text_for_the_vocabulary(corpus, tmp_path):
    with pytest.raises(UserError, match=r"vocab_size: the text gives only \d+ tokens of 50000"):
        bpe_tokenizer.build(bpe_tokenizer.Options(vocab_size=50_000), {"c": corpus}, tmp_path)


def test_bad_options_and_inputs(corpus, tmp_path):
    with pytest.raises(ValueError, match="vocab_size: found 258, allowed: 259 or more"):
        bpe_tokenizer.Options(vocab_size=258)
    with pytest.raises(ValueError, match="max_bytes: found 0"):
        bpe_tokenizer.Options(max_bytes=0)
    with pytest.raises(UserError, match=r"needs one corpus, found inputs \['a', 'b'\]"):
        bpe_tokenizer.build(bpe_tokenizer.Options(), {"b": corpus, "a": corpus}, tmp_path)


def test_folders_that_are_no_tokenizer_are_refused(tmp_path, folder):
    with pytest.raises(UserError, match=r"no tokenizer.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no vocab_size"):
        read_tokenizer_meta(tmp_path)
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer"):
        load_tokenizer(folder)
