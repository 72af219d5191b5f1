"""Acceptance tests of the ProSG module (construction 6.10 of our specification)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from forgetmenot.model import LanguageModel, State, build, load, load_weights, save
from forgetmenot.prosg.apply import merge
from forgetmenot.prosg.wrapper import ProSG

BLOCK = [["rwkv4_time", {}], ["rwkv4_channel", {"width": 24}]]
PLAIN = {
    "hidden": 12,
    "vocab": 31,
    "layers": BLOCK * 2,
    "norm": "layernorm",
    "norm_eps": 1e-5,
    "tie_embeddings": True,
    "init_std": None,
    "prosg": None,
}


def model(**options: Any) -> ProSG:
    """A small model in float64; its base starts as the plain model of the same seed."""
    made: ProSG = build({**PLAIN, "prosg": {"rank": 3, "width": 8, **options}}).double().eval()
    made.init_parameters(0)
    return made


def stirred(made: ProSG) -> ProSG:
    """With a left head away from zero, as after training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.generator.named_parameters():
            if name.startswith("left"):
                parameter.normal_(std=0.05)
    return made


PROMPT, BODY = torch.arange(20).view(2, 10) % 31, torch.arange(5, 29).view(2, 12) % 31


def test_update_is_zero_before_training() -> None:
    made = model()
    read = made(PROMPT).state
    plain: LanguageModel = build(PLAIN).double().eval()
    plain.init_parameters(0)
    ours = made(BODY, made.commit_prompt(read)).logits_BLV
    assert torch.equal(ours, plain(BODY, State(read.layers)).logits_BLV)


def test_factored_equals_merged_weights() -> None:
    made = stirred(model())
    state = made.commit_prompt(made(PROMPT[:1]).state)
    ours = made(BODY[:1], state).logits_BLV
    with torch.no_grad():
        for block, factors in zip(made.targets(), state.update, strict=True):
            for name, linear in block.items():
                linear.weight.copy_(merge(linear, factors[name]))
    merged = made.base(BODY[:1], State(state.layers)).logits_BLV
    torch.testing.assert_close(ours, merged)
    two = made.commit_prompt(made(PROMPT).state).update[0]["key"]
    with pytest.raises(ValueError, match="factors: found 2 sequences; allowed: 1"):
        merge(made.targets()[0]["key"], two)


def test_batch_equals_single_runs() -> None:
    made = stirred(model())
    whole = made(BODY, made.commit_prompt(made(PROMPT).state)).logits_BLV
    for b in range(2):
        state = made.commit_prompt(made(PROMPT[b : b + 1]).state)
        torch.testing.assert_close(made(BODY[b : b + 1], state).logits_BLV, whole[b : b + 1])


def test_steps_equal_the_chunk_on_both_sides_of_the_border() -> None:
    made = stirred(model())
    whole = made(BODY, made.commit_prompt(made(PROMPT).state)).logits_BLV
    state = None
    for t in range(10):
        state = made(PROMPT[:, t : t + 1], state).state
    state = made.commit_prompt(state)
    steps = []
    for t in range(12):
        out = made(BODY[:, t : t + 1], state)
        steps.append(out.logits_BLV)
        state = out.state
    torch.testing.assert_close(torch.cat(steps, 1), whole)


def test_dropping_the_state_leaves_no_trace() -> None:
    made = stirred(model())
    before = {name: p.clone() for name, p in made.named_parameters()}
    plain = made(BODY).logits_BLV
    state = made.commit_prompt(made(PROMPT).state)
    assert not torch.allclose(made(BODY, state).logits_BLV, made(BODY).logits_BLV)
    assert torch.equal(made(BODY).logits_BLV, plain)
    assert all(torch.equal(p, before[name]) for name, p in made.named_parameters())
    assert not any(m._forward_hooks for block in made.targets() for m in block.values())


def test_hooks_are_removed_after_an_error() -> None:
    made = stirred(model())
    state = made.commit_prompt(made(PROMPT).state)
    with pytest.raises(IndexError):
        made(BODY + 100, state)
    assert not any(m._forward_hooks for block in made.targets() for m in block.values())


def test_another_prompts_update_changes_the_outputs() -> None:
    made = stirred(model())
    state = made.commit_prompt(made(PROMPT).state)
    swapped = State(state.layers, tree_map(lambda x: x.flip(0) if x.dim() else x, state.update))
    assert not torch.allclose(made(BODY, state).logits_BLV, made(BODY, swapped).logits_BLV)


def test_gradients_reach_generator_scale_and_prompt() -> None:
    made = stirred(model()).train()
    state = made.commit_prompt(made(PROMPT).state)
    out = made(BODY, state)
    (out.logits_BLV.square().sum() + made.update_penalty(state)).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_first_gradient_on_the_left_factor_is_a_projected_weight_gradient() -> None:
    """Fact F3: at left = 0, dL/dleft = -(eta / r) G right, with G = dL/dW, summed per sequence."""
    made = model().train()
    state = made.commit_prompt(made(PROMPT[:1]).state)
    factors = state.update[0]["value"]
    linear = made.targets()[0]["value"]
    factors.left_BOR.retain_grad()
    made(BODY[:1], state).logits_BLV.square().sum().backward()
    direct = made.base(BODY[:1], State(tree_map(torch.Tensor.detach, state.layers))).logits_BLV
    (weight_gradient,) = torch.autograd.grad(direct.square().sum(), linear.weight)
    expected = -(factors.eta / 3) * weight_gradient @ factors.right_BIR[0]
    torch.testing.assert_close(factors.left_BOR.grad[0], expected)


def test_update_is_clipped_at_inference_only() -> None:
    made = stirred(model(clip=0.01))
    read = made(PROMPT).state
    state = made.commit_prompt(read)
    for block, factors in zip(made.targets(), state.update, strict=True):
        for name, linear in block.items():
            ratio = factors[name].squared_norm().sqrt() / linear.weight.norm()
            assert (ratio <= 0.01 * (1 + 1e-9)).all()
    free = made.train().commit_prompt(read)
    assert made.update_penalty(free) > made.update_penalty(state)


def test_saved_and_loaded_with_a_base_from_elsewhere(tmp_path: Path) -> None:
    plain = build(PLAIN)
    plain.init_parameters(7)
    save(plain, tmp_path / "plain")
    made = build({**PLAIN, "prosg": {"rank": 2, "width": 8}})
    load_weights(made.base, tmp_path / "plain")
    save(made, tmp_path / "prosg")
    again = load(tmp_path / "prosg")
    assert isinstance(again, ProSG)
    assert torch.equal(again(BODY).logits_BLV, plain.eval()(BODY).logits_BLV)


def test_state_size_counts_the_update() -> None:
    made = model().float()
    state = made.commit_prompt(made(PROMPT[:1]).state)
    floats = [x for x in tree_leaves(state) if x is not None and x.dim() and x.is_floating_point()]
    assert made.state_bytes(10) == 4 * sum(x.numel() for x in floats)


def test_unfit_targets_and_backbones_are_refused() -> None:
    with pytest.raises(ValueError, match="targets: found 'gate'; allowed: receptance, key, value"):
        model(targets=["gate"])
    with pytest.raises(ValueError, match="target_mixer: found no 'swiglu'"):
        model(target_mixer="swiglu")
    gdn = [["gdn", {"heads": 1, "key_dim": 4, "value_dim": 4}], ["swiglu", {"width": 8}]]
    made = build({**PLAIN, "layers": gdn, "prosg": {"target_mixer": "swiglu", "targets": ["down"]}})
    with pytest.raises(TypeError, match=r"state: found forgetmenot\.mixers\.gdn"):
        made.commit_prompt(made(PROMPT).state)
