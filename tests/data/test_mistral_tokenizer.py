import hashlib
import io
import os
from dataclasses import replace

import pytest
import sentencepiece

from forgetmenot.data import mistral_tokenizer
from forgetmenot.data.tokenizer_folder import load_tokenizer, read_tokenizer_meta
from forgetmenot.errors import UserError

SIZE = 420


@pytest.fixture(scope="module")
def model(paragraphs):
    """A SentencePiece model with the Mistral model's settings, trained on a page of text."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(paragraphs),
        model_writer=file,
        model_type="bpe",
        vocab_size=SIZE,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return file.getvalue()


@pytest.fixture
def options(model, make_wheel):
    wheel = make_wheel("mistral-common", "0.5", {mistral_tokenizer.MEMBER: model})
    sha256 = hashlib.sha256(model).hexdigest()
    return mistral_tokenizer.Options(**wheel, model_sha256=sha256, vocab_size=SIZE)


def test_ids_equal_sentencepiece(options, model, paragraphs, tmp_path):
    mistral_tokenizer.build(options, {}, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = [*paragraphs, *mistral_tokenizer.PROBES, "", "</s> <s>", "é\x00🙂"]
    texts += [f"{' ' * n}a{' ' * n}the{' ' * n}" for n in range(20)]
    for text in texts:
        assert tokenizer.encode(text).ids == [1, *pieces.encode(text)], text
        assert tokenizer.decode(tokenizer.encode(text).ids[1:]) == text
    meta = read_tokenizer_meta(tmp_path)
    assert [meta[key] for key in ("vocab_size", "bos_id", "eos_id")] == [SIZE, 1, 2]


def test_the_folder_loads_by_name_elsewhere_with_the_same_ids(options, paragraphs, tmp_path):
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    mistral_tokenizer.build(options, {}, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = paragraphs[1] + "  1790\n"
    assert loaded(text).input_ids == load_tokenizer(tmp_path).encode(text).ids
    assert (loaded.bos_token_id, loaded.eos_token_id) == (1, 2)


def test_another_model_or_size_is_refused(options, tmp_path):
    with pytest.raises(UserError, match=f"sha256 is {options.model_sha256}, expected 0000"):
        mistral_tokenizer.build(replace(options, model_sha256="0" * 64), {}, tmp_path)
    with pytest.raises(UserError, match=r"'vocab_size': 420.*expected .*'vocab_size': 32000"):
        mistral_tokenizer.build(replace(options, vocab_size=32_000), {}, tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()


def test_a_conversion_that_differs_from_sentencepiece_is_refused(options, monkeypatch, tmp_path):
    # By piece id, as some converters order merges, text comes out differently.
    right = mistral_tokenizer._merges
    monkeypatch.setattr(mistral_tokenizer, "_merges", lambda *a: right(*a)[::-1])
    with pytest.raises(UserError, match=r"the converted tokenizer encodes .* differently"):
        mistral_tokenizer.build(options, {}, tmp_path)
