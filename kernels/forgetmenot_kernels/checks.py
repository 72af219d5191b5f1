"""Argument checks shared by all operators, and the choice of an implementation."""

from collections.abc import Callable, Mapping
from typing import Any

import torch


def check_shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...], layout: str) -> None:
    """Raise ValueError naming the argument when its shape is not `expected`."""
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name}: found shape {tuple(tensor.shape)}; allowed: {expected} {layout}")


def check_floating(name: str, tensor: torch.Tensor) -> None:
    """Raise TypeError naming the argument when it is not a floating-point tensor."""
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: found dtype {tensor.dtype}; allowed: floating point")


def choose(
    implementations: Mapping[str, Callable[..., Any]], impl: str | None
) -> Callable[..., Any]:
    """The implementation asked for; without a wish, the first one listed. Never a silent fallback.

    Raises ValueError when `impl` does not exist for this operator.
    """
    if impl is None:
        return next(iter(implementations.values()))
    if impl not in implementations:
        raise ValueError(f"impl: found {impl!r}; allowed: {', '.join(implementations)}")
    return implementations[impl]
