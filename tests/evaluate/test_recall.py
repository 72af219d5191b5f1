import json
from typing import NamedTuple

import pytest
import torch
from torch import nn

from forgetmenot.cli.evaluate import main
from forgetmenot.data import mqar
from forgetmenot.errors import UserError
from forgetmenot.evaluate.recall import Options, measure, sequence_accuracies
from forgetmenot.evaluate.score import mean_stderr


class Output(NamedTuple):
    logits_BLV: torch.Tensor


class Lookup(nn.Module):
    """Predicts what followed the current token the last time, among the last `memory` tokens."""

    def __init__(self, memory):
        super().__init__()
        self.memory = memory

    def forward(self, input_ids_BL, need_state=True):
        logits_BLV = torch.zeros(*input_ids_BL.shape, 40)
        for b, row in enumerate(input_ids_BL.tolist()):
            for t, token in enumerate(row):
                for place in range(max(0, t - self.memory), t):
                    if row[place] == token:
                        logits_BLV[b, t, row[place + 1]] = t + place
        return Output(logits_BLV)


@pytest.fixture
def built(tmp_path):
    mqar.build(mqar.Options(pairs=[2, 8], keys=20, values=20, samples=5), {}, tmp_path)
    return tmp_path


def test_a_model_that_recalls_everything_is_right(built):
    metrics, samples = measure(Lookup(memory=100), built, Options(batch_size=2), "cpu")
    assert [tuple(entry.values()) for entry in metrics] == [
        ("accuracy", {"pairs": 2}, 1.0, 0.0, 5),
        ("accuracy", {"pairs": 8}, 1.0, 0.0, 5),
    ]
    assert len(samples) == len({sample["id"] for sample in samples}) == 10


def test_counts_queries_and_takes_the_error_over_sequences(built):
    model = Lookup(memory=16)
    metrics, samples = measure(model, built, Options(pairs=[8], samples=4), "cpu")
    input_ids, labels = mqar.load_test(built, 8)
    shares = []
    for row, label in zip(input_ids[:4].tolist(), labels[:4].tolist(), strict=True):
        queries = [t for t, target in enumerate(label) if target != -100]
        near = [row.index(row[t]) >= t - 16 for t in queries]
        shares.append(sum(near) / len(near))
    mean, stderr = mean_stderr(shares)
    assert 0 < mean < 1
    assert [sample["accuracy"] for sample in samples] == shares
    assert (metrics[0]["value"], metrics[0]["stderr"], metrics[0]["n"]) == (mean, stderr, 4)


def test_unlabelled_positions_do_not_count():
    ids = torch.tensor([[1, 2, 1, 2], [3, 4, 3, 5]])
    labels = torch.tensor([[-100, -100, 2, -100], [-100, -100, 5, 7]])
    assert sequence_accuracies(Lookup(memory=9), ids, labels, batch_size=1) == [1.0, 0.0]


def test_refuses_pairs_that_were_not_built(built):
    with pytest.raises(UserError, match=r"pairs: found 3, allowed: \[2, 8\]"):
        measure(Lookup(memory=9), built, Options(pairs=[3]), "cpu")


class Job:
    def __init__(self, model, data, out, options):
        self.inputs, self.out = {"model": model, "data": data}, out
        self.spec = {
            "evaluator": "recall",
            "task": "recall_small",
            "options": options,
            "device": "cpu",
        }


@pytest.fixture
def saved(tmp_path):
    from forgetmenot import model as models

    layers = [["gdn", {"heads": 2, "key_dim": 8, "value_dim": 8}]]
    spec = {"hidden": 16, "vocab": 40, "layers": layers, "norm_eps": 1e-6, "prosg": None}
    model = models.build(spec | {"tie_embeddings": True, "init_std": None})
    model.init_parameters(0)
    models.save(model, tmp_path / "model")
    return tmp_path / "model"


def test_the_stage_writes_the_task_and_one_line_a_sample(saved, built, tmp_path):
    out = tmp_path / "out"
    main(Job(saved, built, out, {"pairs": [2], "samples": 3}))
    results = json.loads((out / "results.json").read_text())
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert results["task"] == "recall_small"
    assert [entry["at"] for entry in results["metrics"]] == [{"pairs": 2}]
    assert [sample["id"] for sample in samples] == ["2-0", "2-1", "2-2"]


def test_the_stage_names_a_wrong_option(saved, built, tmp_path):
    with pytest.raises(UserError, match=r"task recall_small: options: .*'pears'"):
        main(Job(saved, built, tmp_path / "out", {"pears": [2]}))
