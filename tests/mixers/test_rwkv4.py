"""RWKV-4's time mix: a single token's step against the sequence form, in place on its state."""

import copy

import pytest
import torch

from forgetmenot.mixers import rwkv4_time
from forgetmenot.mixers.base import Place

HIDDEN = 12


def made(dtype: torch.dtype) -> rwkv4_time.Mixer:
    torch.manual_seed(0)
    return rwkv4_time.Mixer(Place(HIDDEN, 1, 3), rwkv4_time.Options()).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_step_equals_the_sequence_form(dtype: torch.dtype) -> None:
    mixer = made(dtype)
    x = torch.randn(3, 20, HIDDEN, dtype=dtype)
    _, learning, _ = mixer(x[:, :8])  # with gradients a token is a sequence of one
    with torch.no_grad():
        _, state, _ = mixer(x[:, :8])
    for t in range(8, 20):
        expected, learning, _ = mixer(x[:, t : t + 1], learning)
        with torch.no_grad():
            y, state, _ = mixer(x[:, t : t + 1], state)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(tuple(state.wkv), tuple(learning.wkv))
        assert torch.equal(state.x_BD, learning.x_BD)


def test_step_writes_to_the_state_and_refuses_a_stale_one() -> None:
    mixer = made(torch.float32)
    with torch.no_grad():
        _, state, _ = mixer(torch.randn(2, 5, HIDDEN))
        before = copy.deepcopy(state)
        _, after, _ = mixer(torch.randn(2, 1, HIDDEN), state)
        assert all(a is b for a, b in zip(after.wkv, state.wkv, strict=True))
        assert not torch.equal(after.wkv.p, before.wkv.p)
        with pytest.raises(ValueError, match="continued already"):
            mixer(torch.randn(2, 1, HIDDEN), state)
        with pytest.raises(ValueError, match="continued already"):
            mixer(torch.randn(2, 3, HIDDEN), state)
        mixer(torch.randn(2, 1, HIDDEN), before)


def test_gradients_reach_the_state_through_a_single_token() -> None:
    mixer = made(torch.float64)
    x = torch.randn(2, 6, HIDDEN, dtype=torch.float64, requires_grad=True)
    _, state, _ = mixer(x[:, :5])
    y, _, _ = mixer(x[:, 5:], state)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    whole, _, _ = mixer(x)
    (expected,) = torch.autograd.grad(whole[:, 5:].sum(), x)
    torch.testing.assert_close(gradient, expected)
    assert gradient[:, :5].any()
