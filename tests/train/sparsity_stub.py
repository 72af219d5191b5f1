"""Layers with an eviction budget that have nothing but scores."""

import torch
from torch import Tensor, nn

from forgetmenot.train.options import Options
from forgetmenot.train.sparsity import SparsityController


class Layer(nn.Module):
    def __init__(self, budget: int | None, margin: int = 2) -> None:
        super().__init__()
        self.budget = budget
        self.receptive_margin = margin
        self.scorer = nn.Linear(1, 1)


def controller(*budgets: int | None, **options: object) -> SparsityController:
    """A controller of one layer for each budget, with a margin of 2."""
    model = nn.Sequential(*(Layer(budget) for budget in budgets), nn.Linear(1, 1))
    return SparsityController(model, Options(**options))  # type: ignore[arg-type]


def scores(length: int, kept: list[int], value: float = 0.25) -> dict[str, Tensor]:
    """Scores [1, T, H] whose head h keeps the first `kept[h]` positions."""
    score_BTH = torch.full((1, length, len(kept)), -value)
    for head, count in enumerate(kept):
        score_BTH[:, :count, head] = value
    return {"score_BTH": score_BTH}


def steps(to: SparsityController, count: int, *aux: dict[str, Tensor]) -> None:
    """Let the first `count` steps be of these scores."""
    for step in range(1, count + 1):
        to.penalty(list(aux))
        to.end_step(step)
