"""Applying what a prompt left for the time of a forward pass, and leaving no trace."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from forgetmenot.prosg.factors import Factors, Update
from forgetmenot_kernels.low_rank_linear import low_rank_update

Targets = list[dict[str, nn.Linear]]  # of every block, by name
Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]


class Adder:
    """A hook that makes a linear map compute W'x, with the factors of each sequence."""

    def __init__(self, factors: Factors) -> None:
        self.factors = factors

    def __call__(self, _: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """W'x from the map's input and its output Wx."""
        left, right, eta = self.factors[:3]
        change_BTO = low_rank_update(args[0], left, right, scale=eta)
        faded_T = self.factors.faded(change_BTO.shape[1])
        if faded_T is not None:
            change_BTO = change_BTO * faded_T[:, None].to(change_BTO.dtype)
        return output + change_BTO


@contextmanager
def applied(hooks: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Inside the context the modules' outputs pass through the hooks.

    Nothing of the modules changes, and the hooks are removed on leaving, also after an error.
    """
    handles = []
    try:
        for module, hook in hooks:
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def clipped(targets: Targets, update: Update, limit: float) -> Update:
    """The update with every |dW|_F at most `limit` |W|_F, by shrinking its left factor."""
    return [
        {name: _clip(block[name], f, limit) for name, f in factors.items()}
        for block, factors in zip(targets, update, strict=True)
    ]


def _clip(linear: nn.Linear, factors: Factors, limit: float) -> Factors:
    norm_B = factors.squared_norm().clamp(min=1e-30).sqrt()
    shrink_B = (limit * linear.weight.norm() / norm_B).clamp(max=1.0)
    return factors._replace(left_BOR=factors.left_BOR * shrink_B[:, None, None])


def merge(linear: nn.Linear, factors: Factors) -> torch.Tensor:
    """W' [O, I] of a single sequence, in W's dtype.

    Raises ValueError for a batch, and for a change that fades from token to token.
    """
    if factors.age is not None:
        raise ValueError("factors: found a half-life; allowed in merged weights: none")
    if factors.left_BOR.shape[0] != 1:
        raise ValueError(f"factors: found {factors.left_BOR.shape[0]} sequences; allowed: 1")
    return (linear.weight + factors.change()[0]).to(linear.weight.dtype)


@contextmanager
def merged(targets: Targets, update: Update) -> Iterator[None]:
    """Inside the context the weights are those of the single sequence of `update`, merged.

    On leaving, also after an error, the weights are the very tensors they were before, bit for bit.
    Raises ValueError for a batch.
    """
    before: list[tuple[nn.Linear, torch.Tensor]] = []
    try:
        for block, factors in zip(targets, update, strict=True):
            for name, f in factors.items():
                linear = block[name]
                new = merge(linear, f).detach()
                before.append((linear, linear.weight.data))
                linear.weight.data = new
        yield
    finally:
        for linear, weight in reversed(before):
            linear.weight.data = weight
