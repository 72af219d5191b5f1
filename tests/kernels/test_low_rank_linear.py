"""The factored per-sequence update against the merged weight."""

import pytest
import torch

from forgetmenot_kernels.low_rank_linear import low_rank_linear, low_rank_update


def leaves() -> list[torch.Tensor]:
    """X, left, right, scale, weight and bias."""
    torch.manual_seed(0)
    shapes = [(3, 7, 5), (3, 6, 2), (3, 5, 2), (), (6, 5), (6,)]
    return [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]


def test_factored_equals_merged_with_gradients() -> None:
    parts = leaves()[:4]
    results = []
    for impl in ("factored", "merged"):
        y = low_rank_update(*parts[:3], scale=parts[3], impl=impl)
        results.append([y, *torch.autograd.grad(y.sin().sum(), parts)])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_is_the_shared_map_and_the_update(with_bias: bool) -> None:
    parts = leaves()[: 6 if with_bias else 5]
    x, left, right, scale, weight, *bias = parts
    bias = bias[0] if bias else None
    results = []
    for impl in ("factored", "merged"):
        y = low_rank_linear(x, weight, left, right, scale=scale, bias=bias, impl=impl)
        results.append([y, *torch.autograd.grad(y.sin().sum(), parts)])
    y = torch.nn.functional.linear(x, weight, bias) + low_rank_update(x, left, right, scale=scale)
    results.append([y, *torch.autograd.grad(y.sin().sum(), parts)])
    for one, other, by_hand in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one, by_hand)


def test_sequences_keep_their_own_factors() -> None:
    x, left, right = torch.randn(3, 7, 5), torch.randn(3, 6, 2), torch.randn(3, 5, 2)
    whole = low_rank_update(x, left, right)
    one = low_rank_update(x[1:2], left[1:2], right[1:2])
    torch.testing.assert_close(whole[1:2], one)


def test_errors_name_the_argument() -> None:
    x, left, right = torch.zeros(3, 7, 5), torch.zeros(3, 6, 2), torch.zeros(3, 5, 2)
    with pytest.raises(ValueError, match=r"right: found shape \(3, 4, 2\)"):
        low_rank_update(x, left, right[:, :4])
    with pytest.raises(ValueError, match=r"scale: found shape \(1,\); allowed: \(\)"):
        low_rank_update(x, left, right, scale=torch.ones(1))
    weight = torch.zeros(6, 5)
    with pytest.raises(ValueError, match=r"weight: found shape \(6, 4\); allowed: \(6, 5\)"):
        low_rank_linear(x, weight[:, :4], left, right)
    with pytest.raises(ValueError, match=r"left: found shape \(3, 6, 2\); allowed: \(3, 5, 2\)"):
        low_rank_linear(x, weight[:5], left, right)
    with pytest.raises(ValueError, match=r"bias: found shape \(5,\); allowed: \(6,\)"):
        low_rank_linear(x, weight, left, right, bias=torch.zeros(5))
    with pytest.raises(ValueError, match=r"x: found shape \(3, 0, 5\); allowed: \[B, T, I\]"):
        low_rank_linear(x[:, :0], weight, left, right)
    with pytest.raises(ValueError, match="impl: found 'fast'; allowed: factored, merged, triton"):
        low_rank_linear(x, weight, left, right, impl="fast")
