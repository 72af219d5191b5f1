"""The short causal convolution against its definition, in segments, and its errors."""

import pytest
import torch

from forgetmenot_kernels.short_conv import short_conv


@pytest.mark.parametrize("time", [1, 2, 3, 4, 17])
def test_shifted_equals_definition_with_gradients(time: int) -> None:
    torch.manual_seed(time)
    leaves = [torch.randn(2, time, 5), torch.randn(5, 4), torch.randn(2, 3, 5)]
    leaves = [x.double().requires_grad_() for x in leaves]
    results = []
    for impl in ("shifted", "recurrent"):
        y, state = short_conv(*leaves[:2], initial_state_BWD=leaves[2], impl=impl)
        loss = y.sin().sum() + state.cos().sum()
        results.append([y, state, *torch.autograd.grad(loss, leaves)])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact)


def test_segments_are_one_sequence() -> None:
    x, weight = torch.randn(2, 9, 5), torch.randn(5, 4)
    whole, final = short_conv(x, weight)
    first, middle = short_conv(x[:, :2], weight)
    second, last = short_conv(x[:, 2:], weight, initial_state_BWD=middle)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(last, final)


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"weight: found shape \(4, 4\); allowed: \(5, 4\)"):
        short_conv(torch.zeros(1, 3, 5), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="initial_state"):
        short_conv(torch.zeros(1, 3, 5), torch.zeros(5, 4), initial_state_BWD=torch.zeros(1, 2, 5))
