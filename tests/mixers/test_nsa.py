"""NSA's state in decoding, its costs, and what its options refuse; the contract is tested apart."""

import copy
from typing import Any

import pytest
import torch

from forgetmenot.mixers.base import Place, select_rows
from forgetmenot.mixers.nsa import Mixer, Options
from forgetmenot.mixers.nsa_state import State

HIDDEN = 24


def make(**changes: Any) -> Mixer:
    torch.manual_seed(0)
    small = {"heads": 4, "kv_heads": 2, "head_dim": 8, "block": 4, "selected": 3, "window": 5}
    return Mixer(Place(HIDDEN), Options(**{**small, **changes})).double().eval()


def steps(mixer: Mixer, x_BLD: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
    outputs = []
    for x in x_BLD.split(1, 1):
        y, state, _ = mixer(x, state)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def tokens(batch: int, length: int) -> torch.Tensor:
    torch.manual_seed(length)
    return torch.randn(batch, length, HIDDEN, dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 3, 4, 17, 32])
def test_prompt_and_steps_in_place_equal_a_full_pass(prompt: int) -> None:
    mixer, x = make(), tokens(2, 45)
    whole, _, _ = mixer(x)
    y, state, _ = mixer(x[:, :prompt])
    torch.testing.assert_close(y, whole[:, :prompt])
    y, state = steps(mixer, x[:, prompt:40], state)
    torch.testing.assert_close(y, whole[:, prompt:40])
    y, state, _ = mixer(x[:, 40:43], state)  # several tokens at once, then steps again
    torch.testing.assert_close(y, whole[:, 40:43])
    y, state = steps(mixer, x[:, 43:], state)
    torch.testing.assert_close(y, whole[:, 43:])


@torch.no_grad()
def test_padded_prompts_and_documents_continue_as_each_alone() -> None:
    mixer, x, more = make(), tokens(3, 20), tokens(3, 30)
    lengths = [20, 1, 2]
    mask = torch.stack([torch.arange(20) >= 20 - n for n in lengths])
    row = torch.cat([x[b, 20 - n :] for b, n in enumerate(lengths)])[None]
    _, padded, _ = mixer(x, mask_BL=mask)
    _, packed, _ = mixer(row, cu_seqlens=torch.tensor([0, 20, 21, 23]))
    alone = []
    for b, n in enumerate(lengths):
        _, state, _ = mixer(x[b : b + 1, 20 - n :])
        alone.append(steps(mixer, more[b : b + 1], state)[0])
    for state in (padded, packed):
        torch.testing.assert_close(steps(mixer, more, state)[0], torch.cat(alone))


@torch.no_grad()
def test_a_step_writes_in_place_and_refuses_a_stale_state() -> None:
    mixer, x = make(), tokens(2, 12)
    _, state, _ = mixer(x[:, :8])
    _, first, _ = mixer(x[:, 8:9], state)  # makes room for 16
    _, second, _ = mixer(x[:, 9:10], first)
    for a, b in zip(first.cache(), second.cache(), strict=True):
        assert a.data_ptr() == b.data_ptr()
    for stale in (first, copy.deepcopy(first)):
        with pytest.raises(ValueError, match="state: found one that was continued already"):
            mixer(x[:, 9:10], stale)
    branch, swapped = copy.deepcopy(second), select_rows(second, torch.tensor([1, 0]))
    expected, _ = steps(mixer, x[:, 10:], second)
    torch.testing.assert_close(steps(mixer, x[:, 10:], branch)[0], expected)
    torch.testing.assert_close(steps(mixer, x[:, 10:].flip(0), swapped)[0], expected.flip(0))
    # where room was made, the state before was copied and is still good
    y, _, _ = mixer(x[:, 8:9], state)
    torch.testing.assert_close(y, mixer(x[:, :9])[0][:, 8:])


def test_a_gradient_flows_through_the_state() -> None:
    mixer, x = make(), tokens(1, 14).requires_grad_()
    whole, _, _ = mixer(x)
    (expected,) = torch.autograd.grad(whole[:, 10:].sin().sum(), x)
    _, state, _ = mixer(x[:, :10])
    y, state, _ = mixer(x[:, 10:13], state)
    last, _, _ = mixer(x[:, 13:], state)
    (found,) = torch.autograd.grad(torch.cat((y, last), 1).sin().sum(), x)
    torch.testing.assert_close(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 4, 5, 33])
def test_state_bytes_are_keys_values_and_their_means(length: int) -> None:
    mixer = make().float()
    x = tokens(1, length).float()
    _, state, _ = mixer(x)
    assert 4 * sum(x.numel() for x in state.filled(4)[:4]) == mixer.state_bytes(length)
    state = None
    for token in x.split(1, 1):
        _, state, _ = mixer(token, state)
    assert 4 * sum(x.numel() for x in state.filled(4)[:4]) == mixer.state_bytes(length)


def test_flops_count_the_columns_of_each_branch() -> None:
    mixer = make()
    linear = 2 * sum(p.numel() for p in mixer.parameters())
    column = 4 * 4 * 8
    assert mixer.flops(0) == linear + column * (0 + 1 + 1)
    assert mixer.flops(3) == linear + column * (1 + 4 + 4)
    assert mixer.flops(9) == linear + column * (2 + 10 + 5)
    assert mixer.flops(30) == linear + column * (7 + 11 + 5)


def test_options_refuse_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="kv_heads: found 3; allowed: divisors of 4"):
        make(kv_heads=3)
    with pytest.raises(ValueError, match="selected: found 2; allowed: at least 3"):
        make(selected=2)
    with pytest.raises(ValueError, match="block: found 0"):
        make(block=0)
    with pytest.raises(ValueError, match="window: found 0"):
        make(window=0)
