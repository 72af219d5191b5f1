"""Factored and merged application agree, and merging is undone bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from forgetmenot.prosg.apply import merge
from forgetmenot.prosg.factors import Factors

Make = Callable[..., Any]


@pytest.mark.parametrize("generator", ["g1", "static"])
def test_factored_equals_merged(
    backbone: str, generator: str, trained: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    made = trained(backbone, generator)
    before = {name: p.clone() for name, p in made.named_parameters()}
    with torch.no_grad():
        state = made.commit_prompt(made(prompt_BP[:1]).state)
        factored = made(body_BL[:1], state).logits_BLV
        plain = made(body_BL[:1], made.reset(state)).logits_BLV
        with made.merged(state) as inside:
            assert inside.update is None
            steps = []
            for t in range(body_BL.shape[1]):
                out = made(body_BL[:1, t : t + 1], inside)
                inside = out.state
                steps.append(out.logits_BLV)
        torch.testing.assert_close(torch.cat(steps, 1), factored)
    assert not torch.allclose(factored, plain)
    assert all(torch.equal(p, before[name]) for name, p in made.named_parameters())
    assert all(p.grad_fn is None for p in made.parameters())


def test_merging_is_undone_after_an_error(trained: Make, prompt_BP: torch.Tensor) -> None:
    made = trained("gdn").float()
    before = [linear.weight.clone() for block in made.targets() for linear in block.values()]
    state = made.commit_prompt(made(prompt_BP[:1]).state)
    seen = []

    def stop() -> None:
        seen.append(made.targets()[0]["up"].weight.clone())
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), made.merged(state):
        stop()
    assert not torch.equal(seen[0], before[0])
    after = [linear.weight for block in made.targets() for linear in block.values()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_a_batch_and_other_updates_cannot_be_merged(trained: Make, prompt_BP: torch.Tensor) -> None:
    made = trained("rwkv4")
    state = made.commit_prompt(made(prompt_BP).state)
    with (
        pytest.raises(ValueError, match="factors: found 2 sequences; allowed: 1"),
        made.merged(state),
    ):
        pass
    made = trained("rwkv4", "frozen_read")
    state = made.commit_prompt(made(prompt_BP).state)
    with pytest.raises(ValueError, match="found frozen_read; allowed: one with low-rank factors"):
        made.require_factors(state)
    with pytest.raises(ValueError, match="found no update"):
        made.require_factors(made.reset(state))


def test_merge_is_w_minus_eta_over_r_left_right() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(5, 4, bias=False).double()
    left, right = torch.randn(1, 4, 3).double(), torch.randn(1, 5, 3).double()
    factors = Factors(left, right, torch.tensor(0.7).double())
    expected = linear.weight - 0.7 / 3 * left[0] @ right[0].T
    torch.testing.assert_close(merge(linear, factors), expected)
    change = factors.change()
    torch.testing.assert_close(factors.squared_norm(), change.square().sum((1, 2)))
