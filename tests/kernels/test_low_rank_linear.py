"""The factored per-sequence update against the merged weight."""

import pytest
import torch

from forgetmenot_kernels.low_rank_linear import low_rank_update


def test_factored_equals_merged_with_gradients() -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(3, 7, 5), torch.randn(3, 6, 2), torch.randn(3, 5, 2), torch.tensor(0.7)]
    leaves = [x.double().requires_grad_() for x in leaves]
    results = []
    for impl in ("factored", "merged"):
        y = low_rank_update(*leaves[:3], scale=leaves[3], impl=impl)
        results.append([y, *torch.autograd.grad(y.sin().sum(), leaves)])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact)


def test_sequences_keep_their_own_factors() -> None:
    x, left, right = torch.randn(3, 7, 5), torch.randn(3, 6, 2), torch.randn(3, 5, 2)
    whole = low_rank_update(x, left, right)
    one = low_rank_update(x[1:2], left[1:2], right[1:2])
    torch.testing.assert_close(whole[1:2], one)


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"right: found shape \(3, 4, 2\)"):
        low_rank_update(torch.zeros(3, 7, 5), torch.zeros(3, 6, 2), torch.zeros(3, 4, 2))
