"""An update that fades from token to token (option `half_life`)."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from forgetmenot.prosg.options import Options

Make = Callable[..., Any]


def after(made: Any, prompt_BP: torch.Tensor) -> Any:
    return made.commit_prompt(made(prompt_BP).state)


@torch.no_grad()
def test_in_steps_equals_at_once(
    trained: Make, backbone: str, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    made = trained(backbone, half_life=5.0)
    whole = made(body_BL, after(made, prompt_BP)).logits_BLV
    state, pieces = after(made, prompt_BP), []
    for piece in body_BL.split([3, 1, 1, 7], 1):
        out = made(piece, state)
        state = out.state
        pieces.append(out.logits_BLV)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)


@torch.no_grad()
def test_a_token_has_what_is_left(
    trained: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    made, steady = trained("rwkv4", half_life=5.0), trained("rwkv4")
    fading, full = after(made, prompt_BP), after(steady, prompt_BP)
    block = fading.update[0]["key"]
    torch.testing.assert_close(block.faded(6), 2.0 ** (-torch.arange(6.0).double() / 5))
    # the first token has all of it, a later one the steady update at half its step
    first = made(body_BL[:, :1], fading)
    torch.testing.assert_close(first.logits_BLV, steady(body_BL[:, :1], full).logits_BLV)
    old = [{n: f._replace(age=f.age + 4) for n, f in b.items()} for b in first.state.update]
    half = [{n: f._replace(eta=f.eta / 2) for n, f in b.items()} for b in full.update]
    token = body_BL[:, 1:2]
    layers = first.state.layers  # a step may use them up
    torch.testing.assert_close(
        made(token, type(fading)(copy.deepcopy(layers), old)).logits_BLV,
        steady(token, type(full)(layers, half)).logits_BLV,
    )


@torch.no_grad()
def test_an_earlier_turn_counts_as_what_is_left(
    trained: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    made = trained("rwkv4", half_life=12.0, turns="accumulate")
    state = made(body_BL, after(made, prompt_BP)).state  # twelve tokens: half is left
    earlier = state.update[0]["key"].change() / 2
    alone = made.commit_prompt(state._replace(update=None)).update[0]["key"]
    both = made.commit_prompt(state).update[0]["key"]
    torch.testing.assert_close(both.change(), earlier + alone.change())
    assert torch.equal(both.age, torch.zeros_like(both.age))


def test_what_cannot_fade_is_refused(trained: Make, prompt_BP: torch.Tensor) -> None:
    made = trained("rwkv4", half_life=5.0)
    state = after(made, prompt_BP[:1])
    with pytest.raises(ValueError, match="found a half-life"), made.merged(state):
        pass
    for wrong in ({"half_life": 0.0}, {"half_life": 4.0, "generator": "frozen_read"}):
        with pytest.raises(ValueError, match="half_life: found"):
            Options(**wrong)
