"""What a later commit does to the update that is there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from forgetmenot.prosg.factors import Factors, total
from forgetmenot.prosg.options import Options

Make = Callable[..., Any]


def two_turns(made: Any, prompt_BP: torch.Tensor, body_BL: torch.Tensor) -> tuple[Any, Any, Any]:
    """Changes of one weight: after the first turn, from the second state alone, after both."""
    made.train()  # unclipped
    first = made.commit_prompt(made(prompt_BP).state)
    second = made(body_BL, first).state
    name = next(iter(first.update[1]))
    alone = made.commit_prompt(made.reset(second))
    both = made.commit_prompt(second)
    return tuple(state.update[1][name].change() for state in (first, alone, both))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("turns", "weights"),
    [("keep", (1, 0)), ("replace", (0, 1)), ("accumulate", (1, 1)), ("decay", (0.25, 1))],
)
def test_policies(
    turns: str,
    weights: tuple[float, float],
    backbone: str,
    trained: Make,
    prompt_BP: torch.Tensor,
    body_BL: torch.Tensor,
) -> None:
    made = trained(backbone, turns=turns, turn_decay=0.25, turn_rank=6)
    first, alone, both = two_turns(made, prompt_BP, body_BL)
    torch.testing.assert_close(both, weights[0] * first + weights[1] * alone)


def test_the_sum_is_clipped_at_inference(
    trained: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    made = trained("gdn", turns="accumulate", clip=0.02)
    state = made.commit_prompt(made(prompt_BP).state)
    for _ in range(3):
        state = made.commit_prompt(made(body_BL, state).state)
    for ratio in made.update_ratios(state).values():
        torch.testing.assert_close(ratio, torch.full_like(ratio, 0.02))


def test_rank_of_the_sum_grows_unless_bounded(
    trained: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    for bound, rank in ((None, 9), (5, 5)):
        made = trained("rwkv4", turns="accumulate", turn_rank=bound)
        state = made.commit_prompt(made(prompt_BP).state)
        for _ in range(2):
            state = made.commit_prompt(made(body_BL, state).state)
        assert state.update[0]["key"].left_BOR.shape[-1] == rank


def test_a_bounded_sum_is_the_nearest_of_its_rank() -> None:
    torch.manual_seed(0)
    eta = torch.tensor(1.0).double()
    one, two = (
        Factors(torch.randn(2, 7, 3).double(), torch.randn(2, 6, 3).double(), eta * scale)
        for scale in (0.5, 2.0)
    )
    whole = 0.3 * one.change() + two.change()
    bounded = total(one, two, 0.3, 4).change()
    tail = torch.linalg.svdvals(whole)[:, 4:].square().sum(1)
    torch.testing.assert_close((whole - bounded).square().sum((1, 2)), tail)


def test_policies_that_need_factors_are_refused_for_others() -> None:
    with pytest.raises(ValueError, match="turns: found 'decay', allowed for offset: 'keep'"):
        Options(generator="offset", turns="decay")
    with pytest.raises(ValueError, match="turn_decay: found 2, allowed: 0 to 1"):
        Options(turn_decay=2)
