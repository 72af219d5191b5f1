"""Applying an update to linear maps for the time of a forward pass, and leaving no trace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from forgetmenot.prosg.generator import Factors
from forgetmenot_kernels.low_rank_linear import low_rank_update

Targets = list[dict[str, nn.Linear]]  # of every block, by name
Update = list[dict[str, Factors]]  # the same, with the factors of each sequence
Hook = Callable[[nn.Module, tuple[torch.Tensor], torch.Tensor], torch.Tensor]


@contextmanager
def applied(targets: Targets, update: Update) -> Iterator[None]:
    """Inside the context every target computes W'x with the factors of each sequence.

    The weights themselves never change: a forward hook adds the low-rank part, per sequence, and
    is removed on leaving, also after an error.
    """
    handles = []
    try:
        for block, factors in zip(targets, update, strict=True):
            for name, linear in block.items():
                handles.append(linear.register_forward_hook(_adder(factors[name])))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adder(factors: Factors) -> Hook:
    def hook(_: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        left, right, eta = factors
        return output + low_rank_update(args[0], left, right, scale=eta)

    return hook


def clipped(targets: Targets, update: Update, limit: float) -> Update:
    """The update with every |dW|_F at most `limit` |W|_F, by shrinking its left factor."""
    return [
        {name: _clip(linear, factors[name], limit) for name, linear in block.items()}
        for block, factors in zip(targets, update, strict=True)
    ]


def _clip(linear: nn.Linear, factors: Factors, limit: float) -> Factors:
    norm_B = factors.squared_norm().clamp(min=1e-30).sqrt()
    shrink_B = (limit * linear.weight.norm() / norm_B).clamp(max=1.0)
    return factors._replace(left_BOR=factors.left_BOR * shrink_B[:, None, None])


def merge(linear: nn.Linear, factors: Factors) -> torch.Tensor:
    """W' [O, I] of a single sequence. Raises ValueError for a batch."""
    if factors.left_BOR.shape[0] != 1:
        raise ValueError(f"factors: found {factors.left_BOR.shape[0]} sequences; allowed: 1")
    change = factors.left_BOR[0] @ factors.right_BIR[0].mT
    return linear.weight - factors.eta / factors.left_BOR.shape[-1] * change
