import json

import pytest
import torch

from forgetmenot import model as models
from forgetmenot.data.tokenizer_folder import load_tokenizer
from forgetmenot.errors import UserError
from forgetmenot.evaluate.niah_audit import (
    Options,
    by_head,
    evaluate,
    measure,
    summarise,
    value_tokens,
)

OPTIONS = Options(max_new_tokens=2, max_length=64, batch_size=2)
BEFORE, AFTER = "one two three four five " * 2, " two one four three five" * 3
PROMPTS = {"far": BEFORE + "six" + AFTER, "near": BEFORE + AFTER.strip() + " six two"}


@pytest.fixture
def needles(words):
    (words / "test").mkdir()
    lines = [
        {"id": name, "depth": 50, "input": prompt, "outputs": ["six"], "tokens": 27}
        for name, prompt in PROMPTS.items()
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (words / "test" / "niah_1-40.jsonl").write_text(text)
    return words


def test_shares_are_what_the_last_token_sees(hybrid, needles, tmp_path):
    models.save(hybrid, tmp_path / "model")
    evaluate(tmp_path / "model", needles, OPTIONS, tmp_path / "out", "cpu")
    samples = {
        sample["id"]: sample
        for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
        for sample in [json.loads(line)]
    }
    ids = load_tokenizer(needles).encode(PROMPTS["far"]).ids
    place = ids.index(7)  # "six"; the window holds the last 8 tokens, the sinks the first 2
    aux = hybrid(torch.tensor([ids])).aux[1]
    expected = (aux["visible_until_BTH"][0, place] > len(ids) - 1).tolist()
    assert samples["far"]["out_of_reach"]
    assert samples["far"]["seen"] == {"1": [float(value) for value in expected]}
    assert not samples["near"]["out_of_reach"]
    assert samples["near"]["seen"] == {"1": [1.0, 1.0]}
    metrics = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    assert {entry["n"] for entry in metrics if entry["metric"] == "kept"} == {1}
    (group,) = json.loads((tmp_path / "out" / "audit.json").read_text())["groups"]
    assert (group["task"], group["length"], group["n"]) == ("niah_1", 40, 1)
    assert group["layers"] == samples["far"]["seen"]


def sample(accuracy, kept, out_of_reach=True):
    return {
        "at": {"task": "niah_2", "length": 8, "depth": 0},
        "accuracy": accuracy,
        "seen": {"1": kept},
        "out_of_reach": out_of_reach,
    }


def test_answers_are_set_against_what_was_kept():
    samples = [sample(1.0, [1.0, 0.0]), sample(1.0, [1.0, 1.0]), sample(0.0, [0.5, 0.0])]
    samples += [sample(0.0, [0.0, 0.5]), sample(1.0, [1.0, 1.0], out_of_reach=False)]
    at = {"task": "niah_2", "length": 8}
    found = {
        (entry["metric"], *(v for k, v in entry["at"].items() if k not in at)): entry
        for entry in summarise(samples)
    }
    assert found["accuracy",]["value"] == pytest.approx(0.6)
    assert found["accuracy",]["n"] == 5
    assert found["kept",]["value"] == pytest.approx(0.5)
    assert found["kept",]["n"] == 4
    assert found["kept_whole",]["value"] == pytest.approx(0.5)
    assert found["kept", "right"]["value"] == pytest.approx(0.75)
    assert found["kept", "wrong"]["value"] == pytest.approx(0.25)
    assert found["accuracy_if", "kept"]["value"] == 1.0
    assert found["accuracy_if", "lost"]["value"] == 0.0
    right, wrong = by_head(samples)
    assert (right["answer"], right["n"], right["layers"]) == ("right", 2, {"1": [1.0, 0.5]})
    assert (wrong["answer"], wrong["n"], wrong["layers"]) == ("wrong", 2, {"1": [0.25, 0.25]})


def test_the_tokens_of_a_value(words):
    assert value_tokens(load_tokenizer(words), "one six two six", ["six", "two"]) == [2, 3, 4]


def test_refuses_a_plain_model(needles):
    spec = {
        "hidden": 16,
        "vocab": 11,
        "layers": [["gdn", {"heads": 2, "key_dim": 8, "value_dim": 8}]],
        "norm_eps": 1e-6,
        "tie_embeddings": True,
        "init_std": None,
        "prosg": None,
    }
    with pytest.raises(UserError, match="found no layer with token eviction"):
        measure(models.build(spec).eval(), needles, OPTIONS, "cpu")
