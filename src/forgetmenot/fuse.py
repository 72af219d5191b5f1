"""Pointwise chains and norms as one kernel each, in training on a GPU.

Written once, in PyTorch. On a GPU a small model's training step is mostly such chains, read and
written link by link; torch.compile makes one pass of each, forward and backward. Elsewhere, and
where nothing is learned (decoding runs through CUDA graphs), they run as written.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def fused(function: Function) -> Function:
    """`function` of tensors whose first axis is rows (the first argument says how many).

    Each row's result may depend on its own row and on the other arguments only. It is compiled once
    for any number of rows; a model may have several widths and dtypes.
    """
    compiled: list[Callable[..., Any]] = []  # made when first called: it takes a second to import

    @functools.wraps(function)
    def call(first: torch.Tensor, *rest: Any) -> Any:
        if not (first.is_cuda and torch.is_grad_enabled()):
            return function(first, *rest)
        if not compiled:
            compiled.append(torch.compile(function, fullgraph=True))
        for x in (first, *rest):
            if isinstance(x, torch.Tensor) and x.dim() and len(x) == len(first):
                torch._dynamo.maybe_mark_dynamic(x, 0)
        return compiled[0](first, *rest)

    return call  # type: ignore[return-value]  # the wrapper has the function's own signature
