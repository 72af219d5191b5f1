"""Decoding as graphs: the tokens and logits of eager steps, and what cannot be captured is named.

Without a GPU a "graph" is the static step itself, run again.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from forgetmenot import model as models
from forgetmenot.decode_graph import DecodeGraph, cuda_graph, tensors
from forgetmenot.evaluate.generate import greedy
from forgetmenot.model import LanguageModel, State

VOCAB, HIDDEN = 50, 32
GDN = ["gdn", {"heads": 2, "key_dim": 16, "value_dim": 16}]
LTE_OPTIONS = {"heads": 4, "kv_heads": 2, "head_dim": 16, "window": 64, "sink": 2, "budget": 9}
LTE = ["lte", LTE_OPTIONS]
SWA = ["attention", {"heads": 4, "kv_heads": 2, "head_dim": 16, "window": 7}]
FULL = ["attention", {"heads": 4, "kv_heads": 2, "head_dim": 16}]
NSA = ["nsa", {"heads": 2, "kv_heads": 2, "head_dim": 16, "block": 4, "selected": 3, "window": 4}]
UNCAPPED = ["lte", {**LTE_OPTIONS, "budget": None}]
RWKV7 = {"heads": 2, "head_dim": 16, "decay_rank": 6, "rate_rank": 7, "gate_rank": 9}
FFN = ["swiglu", {"width": 32}]
MODELS = {
    "gdn_lte": [GDN, FFN, LTE, FFN],
    "lte_unlike": [LTE, ["lte", {**LTE_OPTIONS, "window": 40}]],
    "gdn_swa": [GDN, FFN, SWA, FFN],
    "rwkv4": [["rwkv4_time", {}], ["rwkv4_channel", {"width": 40}]],
    "rwkv7": [["rwkv7_time", RWKV7], ["rwkv7_channel", {"width": 40}]],
    "retention": [["retention", {"heads": 2, "key_dim": 16}], FFN],
}
STEPS = 14  # of MODELS' LTE layers four tokens, or two, are scored at once: three times and more


def again(step: Callable[[], None]) -> Callable[[], None]:
    return step


def small(layers: list[Any], device: str = "cpu") -> LanguageModel:
    """A model with random weights, in which LTE keeps some tokens and drops others."""
    spec = {
        "hidden": HIDDEN, "vocab": VOCAB, "layers": layers, "norm": "rmsnorm", "norm_eps": 1e-6,
        "tie_embeddings": False, "init_std": None, "prosg": None,
    }  # fmt: skip
    model: LanguageModel = models.build(spec).eval()
    model.init_parameters(0)
    for mixer in model.mixers():
        if hasattr(mixer, "keep_bias"):
            torch.nn.init.zeros_(mixer.keep_bias)
    return model.to(device)


def prompt(batch: int, length: int, device: str = "cpu") -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCAB, (batch, length), generator=generator).to(device)


def started(model: LanguageModel, ids: torch.Tensor) -> tuple[torch.Tensor, State]:
    """The most probable token [B, 1] after a prompt, and the state."""
    with torch.no_grad():
        output = model(ids)
    assert output.state is not None
    return output.logits_BLV[:, -1].argmax(-1, keepdim=True), output.state


@pytest.mark.parametrize("name", MODELS)
def test_steps_without_a_token_decode_greedily(name: str) -> None:
    model, ids = small(MODELS[name]), prompt(2, 70)
    expected = greedy(
        model, ids.tolist(), max_new_tokens=STEPS + 1, batch_size=2, stop=lambda _: False,
        device="cpu",
    )  # fmt: skip
    first, state = started(model, ids)
    graph = DecodeGraph(model, state, first, record=again)
    found = [first]
    for _ in range(STEPS):
        graph.step()
        found.append(graph.input_ids_B1.clone())
    assert torch.cat(found, 1).tolist() == expected


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_goes_on_from_a_state_in_the_middle_and_gives_it_back(name: str) -> None:
    model, ids = small(MODELS[name]), prompt(2, 90)
    with torch.no_grad():
        expected = model(ids).logits_BLV
        _, state = started(model, ids[:, :70])
        for at in range(70, 73):  # LTE now waits with three tokens
            state = model(ids[:, at : at + 1], state).state
        graph = DecodeGraph(model, state, ids[:, 73:74], record=again)
        for at in range(73, 84):
            logits = graph.step(ids[:, at : at + 1])
            torch.testing.assert_close(logits, expected[:, at], atol=1e-4, rtol=1e-4)
        state = graph.finish()
        for at in range(84, 90):
            output = model(ids[:, at : at + 1], state)
            state = output.state
            wanted = expected[:, at]
            torch.testing.assert_close(output.logits_BLV[:, 0], wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="step: found a graph whose state was given away"):
        graph.step()
    with pytest.raises(ValueError, match="finish: found a graph whose state was given away"):
        graph.finish()


@pytest.mark.parametrize(("name", "kinds"), [("gdn_lte", 2), ("lte_unlike", 3), ("rwkv4", 1)])
def test_each_kind_of_step_is_recorded_once(name: str, kinds: int) -> None:
    model = small(MODELS[name])
    recorded = []

    def record(step: Callable[[], None]) -> Callable[[], None]:
        recorded.append(step)
        return step

    first, state = started(model, prompt(1, 70))
    DecodeGraph(model, state, first, record=record)
    assert len(recorded) == kinds


@pytest.mark.parametrize("name", MODELS)
def test_states_stay_where_they_are(name: str) -> None:
    model = small(MODELS[name])
    first, state = started(model, prompt(2, 70))
    before = [x.data_ptr() for x in tensors(state)]
    graph = DecodeGraph(model, state, first, record=again)
    logits = graph.step().data_ptr()
    assert graph.step().data_ptr() == logits
    assert [x.data_ptr() for x in tensors(graph.finish())] == before


def test_the_state_given_is_used_up() -> None:
    model = small(MODELS["gdn_lte"])
    first, state = started(model, prompt(1, 70))
    DecodeGraph(model, state, first, record=again).step()
    with torch.no_grad(), pytest.raises(ValueError, match="one that was continued already"):
        model(first, state)


@pytest.mark.parametrize(("layer", "mixer"), [(FULL, "attention"), (NSA, "nsa"), (UNCAPPED, "lte")])
def test_a_mixer_whose_state_grows_is_named(layer: list[Any], mixer: str) -> None:
    model = small([GDN, layer])
    first, state = started(model, prompt(1, 9))
    with pytest.raises(ValueError, match=f"layer 1: found the mixer '{mixer}', whose state grows"):
        DecodeGraph(model, state, first, record=again)


def test_what_cannot_be_captured_is_named() -> None:
    model = small(MODELS["gdn_swa"])
    first, state = started(model, prompt(1, 9))
    with pytest.raises(ValueError, match="device: found cpu; allowed in CUDA graphs: cuda"):
        DecodeGraph(model, state, first)
    with pytest.raises(ValueError, match="model: found ProSG"):
        DecodeGraph(model, state._replace(update=()), first, record=again)
    with pytest.raises(ValueError, match="model: found in training mode"):
        DecodeGraph(model.train(), state, first, record=again)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_graphs_do_what_eager_steps_do(name: str, dtype: torch.dtype) -> None:
    model = small(MODELS[name], "cuda").to(dtype)
    ids = prompt(3, 70 + STEPS, "cuda")
    _, eager = started(model, ids[:, :70])
    _, state = started(model, ids[:, :70])
    graph = DecodeGraph(model, state, ids[:, 70:71], record=cuda_graph)
    for at in range(70, 70 + STEPS):
        logits = graph.step(ids[:, at : at + 1])
        with torch.no_grad():
            output = model(ids[:, at : at + 1], eager)
        eager = output.state
        torch.testing.assert_close(logits, output.logits_BLV[:, 0], atol=0, rtol=0)
    for found, wanted in zip(tensors(graph.finish()), tensors(eager), strict=True):
        torch.testing.assert_close(found, wanted, atol=0, rtol=0)
