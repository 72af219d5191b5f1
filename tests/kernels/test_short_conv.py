"""The short causal convolution against its definition, in segments, and its errors."""

import itertools

import pytest
import torch

from forgetmenot_kernels.short_conv import short_conv, short_conv_step


@pytest.mark.parametrize("time", [1, 2, 3, 4, 17])
def test_shifted_equals_definition_with_gradients(time: int) -> None:
    torch.manual_seed(time)
    leaves = [torch.randn(2, time, 5), torch.randn(5, 4), torch.randn(2, 3, 5)]
    leaves = [x.double().requires_grad_() for x in leaves]
    results = []
    for impl in ("shifted", "recurrent"):
        y, state = short_conv(*leaves[:2], initial_state=leaves[2], impl=impl)
        loss = y.sin().sum() + state.cos().sum()
        results.append([y, state, *torch.autograd.grad(loss, leaves)])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact)


def test_segments_are_one_sequence() -> None:
    x, weight = torch.randn(2, 9, 5), torch.randn(5, 4)
    whole, final = short_conv(x, weight)
    first, middle = short_conv(x[:, :2], weight)
    second, last = short_conv(x[:, 2:], weight, initial_state=middle)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(last, final)
    assert torch.equal(final, x[:, -3:])


@pytest.mark.parametrize("impl", ["shifted", "recurrent"])
def test_packed_documents_are_separate_sequences(impl: str) -> None:
    borders = [0, 1, 3, 10, 11, 14, 18]
    x, weight = torch.randn(1, 18, 5).double(), torch.randn(5, 4).double()
    leaves = [x, weight, torch.randn(6, 3, 5).double()]
    x, weight, initial = (leaf.requires_grad_() for leaf in leaves)
    cu_seqlens = torch.tensor(borders, dtype=torch.int32)
    y, state = short_conv(x, weight, initial_state=initial, cu_seqlens=cu_seqlens, impl=impl)
    loss = y.sin().sum() + state.cos().sum()
    packed = [y, state, *torch.autograd.grad(loss, leaves)]
    parts = [
        short_conv(x[:, a:b], weight, initial_state=initial[n : n + 1], impl="recurrent")
        for n, (a, b) in enumerate(itertools.pairwise(borders))
    ]
    y, state = torch.cat([y for y, _ in parts], 1), torch.cat([state for _, state in parts])
    loss = y.sin().sum() + state.cos().sum()
    separate = [y, state, *torch.autograd.grad(loss, leaves)]
    for ours, exact in zip(packed, separate, strict=True):
        torch.testing.assert_close(ours, exact)


def test_packed_documents_without_initial_state_start_from_zeros() -> None:
    x, weight = torch.randn(1, 4, 5), torch.randn(5, 4)
    y, state = short_conv(x, weight, cu_seqlens=torch.tensor([0, 1, 4]), output_final_state=False)
    assert state is None
    torch.testing.assert_close(y[:, :1], short_conv(x[:, :1], weight)[0])
    torch.testing.assert_close(y[:, 1:], short_conv(x[:, 1:], weight)[0])


def test_state_does_not_hold_on_to_the_inputs() -> None:
    _, state = short_conv(torch.randn(1, 1000, 5), torch.randn(5, 4))
    assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


def test_errors_name_the_argument() -> None:
    x, weight = torch.zeros(1, 3, 5), torch.zeros(5, 4)
    with pytest.raises(ValueError, match=r"weight: found shape \(4, 4\); allowed: \(5, W\)"):
        short_conv(x, weight[:4])
    with pytest.raises(ValueError, match="initial_state: found shape"):
        short_conv(x, weight, initial_state=torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match=r"x: found shape \(1, 0, 5\); allowed: \[B, T, D\]"):
        short_conv(x[:, :0], weight)
    with pytest.raises(ValueError, match=r"x: found shape \(2, 3, 5\); allowed: \(1, 3, 5\)"):
        short_conv(x.repeat(2, 1, 1), weight, cu_seqlens=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"cu_seqlens: found \[0, 3, 3\]"):
        short_conv(x, weight, cu_seqlens=torch.tensor([0, 3, 3]))


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_steps_are_one_sequence_and_change_the_state_in_place(taps: int) -> None:
    x, weight = torch.randn(3, 9, 5).double(), torch.randn(5, taps).double()
    whole, final = short_conv(x, weight, impl="recurrent")
    state = x.new_zeros(3, taps - 1, 5)
    address = state.data_ptr()
    outputs = [short_conv_step(x_BD, weight, state) for x_BD in x.unbind(1)]
    torch.testing.assert_close(torch.stack(outputs, 1), whole)
    assert torch.equal(state, final)
    assert state.data_ptr() == address


def test_errors_of_a_step_name_the_argument() -> None:
    x, weight, state = torch.zeros(2, 5), torch.zeros(5, 4), torch.zeros(2, 3, 5)
    with pytest.raises(ValueError, match=r"x: found shape \(2, 1, 5\); allowed: \[B, D\]"):
        short_conv_step(x[:, None], weight, state)
    with pytest.raises(ValueError, match=r"weight: found shape \(4, 4\); allowed: \(5, W\)"):
        short_conv_step(x, weight[:4], state)
    with pytest.raises(ValueError, match=r"state: found shape \(2, 2, 5\); allowed: \(2, 3, 5\)"):
        short_conv_step(x, weight, state[:, 1:])
    with pytest.raises(ValueError, match=r"state: found strides .* allowed: contiguous"):
        short_conv_step(x, weight, torch.zeros(2, 5, 3).mT)
    with pytest.raises(ValueError, match="weight: found one that requires a gradient"):
        short_conv_step(x, weight.requires_grad_(), state)
    with pytest.raises(TypeError, match=r"state: found dtype torch.int64"):
        short_conv_step(x, weight.detach(), state.long())
