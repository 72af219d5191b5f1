"""Fused chains: as written off a GPU and without gradients; on one, the same numbers."""

import pytest
import torch

from forgetmenot.fuse import fused
from forgetmenot.model import LanguageModel
from forgetmenot.train import objective
from forgetmenot.train.options import Options

WIDTH, VOCAB = 32, 50
MIXERS = {
    "attention": {"heads": 2, "kv_heads": 2, "head_dim": 16},
    "gdn": {"heads": 2, "key_dim": 16, "value_dim": 16},
    "lte": {"heads": 2, "kv_heads": 2, "head_dim": 16, "window": 8, "budget": 8, "dropout": 0.0},
    "retention": {"heads": 2, "key_dim": 16},
    "rwkv4_time": {},
    "rwkv7_time": {"heads": 2, "head_dim": 16, "decay_rank": 4, "rate_rank": 4, "gate_rank": 4},
}
CHANNEL = {
    "rwkv4_time": ["rwkv4_channel", {"width": 64}],
    "rwkv7_time": ["rwkv7_channel", {"width": 64}],
}


def test_off_a_gpu_the_function_runs_as_it_is():
    calls = []

    @fused
    def double(x_N):
        """Twice x."""
        calls.append(len(x_N))
        return 2 * x_N

    x_N = torch.ones(3, requires_grad=True)
    assert double(x_N).tolist() == [2, 2, 2]
    assert calls == [3]
    assert double.__doc__ == "Twice x."


def _loss_and_gradients(name, device, batch):
    spec = {
        "hidden": WIDTH, "vocab": VOCAB, "init_std": None, "tie_embeddings": True,
        "norm": "layernorm" if name.startswith("rwkv") else "rmsnorm", "norm_eps": 1e-5,
        "layers": [[name, MIXERS[name]], CHANNEL.get(name, ["swiglu", {"width": 64}])] * 2,
    }  # fmt: skip
    model = LanguageModel(spec).train()
    model.init_parameters(0)
    model.to(device)
    arrays = {key: value.numpy() for key, value in batch.items()}
    tensors = objective.batch_tensors(arrays, torch.device(device))
    loss = objective.loss(model, tensors, Options()).loss
    loss.backward()
    gradients = torch.cat(
        [p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]
    )
    return loss.item(), gradients


@pytest.mark.gpu
@pytest.mark.parametrize("name", MIXERS)
def test_on_a_gpu_loss_and_gradients_are_those_of_a_cpu(name):
    ids_BL = torch.randint(VOCAB, (3, 41), generator=torch.Generator().manual_seed(1))
    for length, scored in ((40, 40), (33, 7)):  # another number of rows, and of places to score
        labels_BL = ids_BL[:, 1 : length + 1].clone()
        labels_BL[:, : length - scored] = objective.IGNORED
        batch = {"input_ids": ids_BL[:, :length].contiguous(), "labels": labels_BL}
        expected, wanted = _loss_and_gradients(name, "cpu", batch)
        found, gradients = _loss_and_gradients(name, "cuda", batch)
        assert found == pytest.approx(expected, rel=1e-4)
        assert (gradients - wanted).norm() < 2e-3 * wanted.norm()
