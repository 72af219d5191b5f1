import json

import pytest
import torch

from forgetmenot import model as models
from forgetmenot.data.tokenizer_folder import load_tokenizer
from forgetmenot.errors import UserError
from forgetmenot.evaluate.kept_map import Options, evaluate, kept_layers, text_pieces

TEXT = "one two three four five six " * 6


@pytest.fixture
def folders(hybrid, words, tmp_path):
    models.save(hybrid, tmp_path / "model")
    lines = [{"id": "a", "text": "one"}, {"id": "b", "text": TEXT, "source": "test"}]
    (words / "heldout.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "model", words, tmp_path / "out"


def test_writes_what_the_layer_keeps(hybrid, folders):
    model_dir, data_dir, out = folders
    evaluate(model_dir, data_dir, Options(document=1, tokens=30), out, "cpu")
    kept = json.loads((out / "kept.json").read_text())
    ids = load_tokenizer(data_dir).encode(TEXT).ids[:30]
    score_TH = hybrid(torch.tensor([ids])).aux[1]["score_BTH"][0]
    (layer,) = kept["layers"]
    assert layer["layer"] == 1
    assert layer["heads"] == (score_TH.T > 0).tolist()
    assert torch.tensor(layer["scores"]) == pytest.approx(score_TH.T.detach(), abs=1e-4)
    assert (kept["window"], kept["sink"], kept["budget"]) == (8, 2, 6)
    assert kept["tokens"][:3] == ["<s>", "one", " two"]
    assert len(kept["tokens"]) == 30

    results = json.loads((out / "results.json").read_text())["metrics"]
    shares = {
        (entry["at"].get("layer"), entry["at"].get("head")): entry["value"] for entry in results
    }
    expected = (score_TH > 0).double().mean(0).tolist()
    assert [shares[1, 0], shares[1, 1]] == pytest.approx(expected)
    assert shares[None, None] == pytest.approx(sum(expected) / 2)
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 60


def test_the_last_query_sees_window_sinks_and_at_most_the_budget(hybrid):
    (layer,) = kept_layers(hybrid, torch.randint(10, (1, 60)))
    for kept, seen in zip(layer.heads, layer.seen_last, strict=True):
        assert all(seen[-8:])
        assert all(seen[:2])
        assert sum(seen[:-8]) <= 6
        assert all(kept[place] for place in range(2, 52) if seen[place])


def test_pieces_join_to_the_text_even_if_tokens_split_a_character():
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers import models as tokenizer_models

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(["<s>", *letters])}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    text = "naïve 日本\n"
    pieces = text_pieces(tokenizer, text, len(text.encode()) + 1)
    assert pieces[0] == "<s>"
    assert "".join(pieces[1:]) == text
    assert pieces[3:6] == ["ï", "", "v"]


def test_refuses_models_without_eviction_and_absent_documents(folders, tmp_path):
    model_dir, data_dir, out = folders
    with pytest.raises(UserError, match="document: found 2, allowed: 0 to 1"):
        evaluate(model_dir, data_dir, Options(document=2), out, "cpu")
    spec = json.loads((model_dir / "config.json").read_text())
    plain = models.build(spec | {"layers": [["swiglu", {"width": 8}]]})
    models.save(plain, tmp_path / "plain")
    with pytest.raises(UserError, match="found no layer with token eviction"):
        evaluate(tmp_path / "plain", data_dir, Options(), out, "cpu")


def test_refuses_data_of_another_vocabulary(folders, tmp_path):
    model_dir, data_dir, out = folders
    spec = json.loads((model_dir / "config.json").read_text())
    models.save(models.build(spec | {"vocab": 12}), tmp_path / "other")
    with pytest.raises(UserError, match="vocabulary has 11 tokens, the model's 12"):
        evaluate(tmp_path / "other", data_dir, Options(), out, "cpu")
