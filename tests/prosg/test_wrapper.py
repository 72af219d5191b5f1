"""Acceptance tests of the ProSG module (construction 6.10 of our specification)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

from forgetmenot.code_hash import CodeHasher
from forgetmenot.mixers.base import select_rows
from forgetmenot.model import State, build, load, load_weights, save

Make = Callable[..., Any]
Case = tuple[str, str]


def hooked(made: Any) -> bool:
    return any(module._forward_hooks for module in made.modules())


def after(made: Any, prompt_BP: torch.Tensor) -> State:
    """The committed state after a prompt."""
    return made.commit_prompt(made(prompt_BP).state)


def test_nothing_changes_before_training(
    case: Case, fresh: Make, plain: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    made, base = fresh(*case), plain(case[0])
    read = made(prompt_BP).state
    ours = made(body_BL, made.commit_prompt(read)).logits_BLV
    assert torch.equal(ours, base(body_BL, State(read.layers)).logits_BLV)


def test_batch_equals_single_runs(
    case: Case, trained: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    made = trained(*case)
    whole = made(body_BL, after(made, prompt_BP)).logits_BLV
    for b in range(2):
        alone = made(body_BL[b : b + 1], after(made, prompt_BP[b : b + 1])).logits_BLV
        torch.testing.assert_close(alone, whole[b : b + 1])


def test_padded_prompts_equal_single_runs(
    case: Case, trained: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    made = trained(*case)
    mask_BP = torch.arange(10) >= torch.tensor([[3], [0]])
    state = made.commit_prompt(made(prompt_BP, mask_BL=mask_BP).state)
    whole = made(body_BL, state).logits_BLV
    for b, start in enumerate((3, 0)):
        alone = made(body_BL[b : b + 1], after(made, prompt_BP[b : b + 1, start:])).logits_BLV
        torch.testing.assert_close(alone, whole[b : b + 1])


def test_logits_to_keep_are_the_last_ones(
    case: Case, trained: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    made = trained(*case)
    mask_BP = torch.arange(10) >= torch.tensor([[3], [0]])
    whole = made(prompt_BP, mask_BL=mask_BP)
    kept = made(prompt_BP, mask_BL=mask_BP, logits_to_keep=1)
    torch.testing.assert_close(kept.logits_BLV, whole.logits_BLV[:, -1:])
    expected = made(body_BL, made.commit_prompt(whole.state)).logits_BLV[:, -2:]
    found = made(body_BL, made.commit_prompt(kept.state), logits_to_keep=2).logits_BLV
    torch.testing.assert_close(found, expected)


def test_rows_of_a_committed_state_can_be_selected(
    case: Case, trained: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    made = trained(*case)
    whole = made(body_BL, after(made, prompt_BP)).logits_BLV
    swapped = select_rows(after(made, prompt_BP), torch.tensor([1, 0]))
    torch.testing.assert_close(made(body_BL.flip(0), swapped).logits_BLV, whole.flip(0))


def test_steps_equal_the_chunk_on_both_sides_of_the_border(
    case: Case, trained: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    made = trained(*case)
    whole = made(body_BL, after(made, prompt_BP))
    with torch.no_grad():  # the steps of decoding, which may write to the state in place
        if case[1] == "g5":  # reads its points in one call
            state = made(prompt_BP).state
        else:
            state = None
            for t in range(10):
                state = made(prompt_BP[:, t : t + 1], state).state
        state = made.commit_prompt(state)
        steps = []
        for t in range(12):
            out = made(body_BL[:, t : t + 1], state)
            steps.append(out.logits_BLV)
            state = out.state
    torch.testing.assert_close(torch.cat(steps, 1), whole.logits_BLV)
    for ours, theirs in zip(
        made.backbone.read(state.layers), made.backbone.read(whole.state.layers), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_reset_leaves_no_trace(
    case: Case, trained: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    made = trained(*case)
    before = {name: p.clone() for name, p in made.named_parameters()}
    nothing = made(body_BL).logits_BLV
    read = made(prompt_BP).state
    unchanged = made(body_BL, State(read.layers)).logits_BLV
    state = made.commit_prompt(read)
    changed = made(body_BL, state).logits_BLV
    assert torch.allclose(changed, unchanged) == (case[1] == "wide")
    assert torch.equal(made(body_BL, made.reset(state)).logits_BLV, unchanged)
    assert torch.equal(made(body_BL).logits_BLV, nothing)
    assert all(torch.equal(p, before[name]) for name, p in made.named_parameters())
    assert not hooked(made)


def test_hooks_are_removed_after_an_error(
    case: Case, trained: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    made = trained(*case)
    state = after(made, prompt_BP)
    with pytest.raises(IndexError):
        made(body_BL + 100, state)
    assert not hooked(made)


def test_another_prompts_update_changes_the_outputs(
    case: Case, trained: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    made = trained(*case)
    state = after(made, prompt_BP)
    flipped = tree_map(lambda x: x.flip(0) if x is not None and x.dim() else x, state.update)
    swapped = made(body_BL, State(state.layers, flipped)).logits_BLV
    same = torch.allclose(made(body_BL, state).logits_BLV, swapped)
    assert same == (case[1] in ("static", "wide"))  # those that do not depend on the prompt


def test_gradients_reach_everything_and_the_state(
    case: Case, trained: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    """Also the prompt's tokens through the update alone, but for what does not read the state."""
    made = trained(*case).train()
    read = made(prompt_BP).state
    state = made.commit_prompt(read)
    alone = made(body_BL, State((), state.update)).logits_BLV.square().sum()
    through = torch.autograd.grad(alone, _floats(read.layers), retain_graph=True, allow_unused=True)
    reached = any(g is not None and g.abs().sum() > 0 for g in through)
    # no gradient passes g3's decomposition
    assert reached == (case[1] not in ("static", "wide", "g3"))
    (made(body_BL, state).logits_BLV.square().sum() + made.update_penalty(state)).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def _floats(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state] if state.requires_grad else []
    return [x for part in state for x in _floats(part)] if isinstance(state, tuple) else []


def test_gradients_reach_the_generator_in_steps(
    backbone: str,
    fresh: Make,
    default_generator: dict[str, str],
    prompt_BP: torch.Tensor,
    body_BL: torch.Tensor,
) -> None:
    """The left side from the first step on; right side, eta and all before from the second."""
    made = fresh(backbone, default_generator[backbone]).train()
    optimizer = torch.optim.SGD(made.generator.parameters(), lr=0.1)
    reached = []
    for _ in range(2):
        optimizer.zero_grad()
        made(body_BL, after(made, prompt_BP)).logits_BLV.square().mean().backward()
        reached.append({n for n, p in made.generator.named_parameters() if p.grad.abs().sum() > 0})
        optimizer.step()
    names = {name for name, _ in made.generator.named_parameters()}
    assert reached[0] == {name for name in names if name.startswith("left")}
    assert reached[1] == names


def test_first_gradient_on_the_left_factor_is_a_projected_weight_gradient(
    backbone: str, fresh: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    """Fact F3: at left = 0, dL/dleft = -(eta / r) G right, with G = dL/dW, summed per sequence."""
    made = fresh(backbone).train()
    state = after(made, prompt_BP[:1])
    name, factors = next(iter(state.update[0].items()))
    linear = made.targets()[0][name]
    factors.left_BOR.retain_grad()
    made(body_BL[:1], state).logits_BLV.square().sum().backward()
    with torch.no_grad():
        read = made(prompt_BP[:1]).state
    direct = made.base(body_BL[:1], State(read.layers)).logits_BLV
    (weight_gradient,) = torch.autograd.grad(direct.square().sum(), linear.weight)
    expected = -(factors.eta / 3) * weight_gradient @ factors.right_BIR[0]
    torch.testing.assert_close(factors.left_BOR.grad[0], expected)


def test_generator_stays_float32_in_a_half_precision_model(
    case: Case, trained: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    made = trained(*case).float().bfloat16()
    assert {p.dtype for p in made.base.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in made.generator.parameters()} == {torch.float32}
    logits = made(body_BL, after(made, prompt_BP)).logits_BLV
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


def test_state_size_counts_the_update(case: Case, fresh: Make, prompt_BP: torch.Tensor) -> None:
    made = fresh(*case)
    state = after(made, prompt_BP[:1])
    held = {"static": 0, "wide": 0}.get(case[1], _count(state.update))
    if case[1] == "offset" and case[0] != "rwkv4":
        # a matrix of rank 3 in each of 2 heads can be kept as its factors
        held = sum(3 * 2 * sum(read.matrix_BHVK.shape[2:]) for read in state.update)
    assert made.state_bytes(10) - made.base.state_bytes(10) == 4 * held


def _count(update: Any) -> int:
    if isinstance(update, torch.Tensor):
        return update.numel() if update.dim() else 0
    if isinstance(update, dict):
        update = list(update.values())
    return sum(_count(part) for part in update) if isinstance(update, list | tuple) else 0


def test_saved_and_loaded_with_a_base_from_elsewhere(
    case: Case, plain: Make, fresh: Make, body_BL: torch.Tensor, tmp_path: Path
) -> None:
    base = plain(case[0]).float()
    save(base, tmp_path / "plain")
    made = build(fresh(*case).spec)
    load_weights(made.base, tmp_path / "plain")
    save(made, tmp_path / "prosg")
    again = load(tmp_path / "prosg")
    assert torch.equal(again(body_BL).logits_BLV, base(body_BL).logits_BLV)


def test_update_ratios_are_named_by_block_and_target(
    backbone: str, trained: Make, prompt_BP: torch.Tensor
) -> None:
    made = trained(backbone)
    state = after(made, prompt_BP)
    ratios = made.update_ratios(state)
    names = {"rwkv4": ("key", "value"), "rwkv7": ("key", "value")}.get(backbone, ("up", "down"))
    assert list(ratios) == [f"{n}/{name}" for n in range(2) for name in names]
    factors, linear = state.update[1][names[1]], made.targets()[1][names[1]]
    expected = factors.change().norm(dim=(1, 2)) / linear.weight.norm()
    torch.testing.assert_close(ratios[f"1/{names[1]}"], expected.detach())
    assert made.update_ratios(made.reset(state)) == {}


def test_update_is_clipped_at_inference_and_where_asked(
    trained: Make, prompt_BP: torch.Tensor
) -> None:
    made = trained("rwkv4", clip=0.01)
    read = made(prompt_BP).state
    state = made.commit_prompt(read)
    assert all((ratio <= 0.01 * (1 + 1e-9)).all() for ratio in made.update_ratios(state).values())
    free = made.train().commit_prompt(read)
    assert made.update_penalty(free) > made.update_penalty(state)
    bound = trained("rwkv4", clip=0.01, clip_training=True).train()
    torch.testing.assert_close(bound.commit_prompt(read).update, state.update)


def test_its_code_reaches_no_backbone() -> None:
    # else a change of one mixer would rerun the jobs of all
    closure = CodeHasher().closure("forgetmenot.prosg.wrapper")
    mixers = {name for name in closure if name.startswith("forgetmenot.mixers.")}
    assert mixers == {"forgetmenot.mixers.base"}


def test_it_is_built_without_memory_on_the_meta_device(case: Case, fresh: Make) -> None:
    spec = fresh(*case).spec
    with torch.device("meta"):
        made = build(spec)
    assert {parameter.device.type for parameter in made.parameters()} == {"meta"}
    assert made.state_bytes(5) == fresh(*case).state_bytes(5)
