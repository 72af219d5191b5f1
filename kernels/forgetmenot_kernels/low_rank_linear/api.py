"""Public entries of the per-sequence low-rank update: validation and dispatch."""

from collections.abc import Callable
from typing import Any

import torch

from forgetmenot_kernels.checks import check_floating, check_shape, choose
from forgetmenot_kernels.low_rank_linear.reference import (
    factored,
    factored_linear,
    merged,
    merged_linear,
)
from forgetmenot_kernels.triton_device import check_triton_device, default_form


def low_rank_linear(
    x_BTI: torch.Tensor,
    weight_OI: torch.Tensor,
    left_BOR: torch.Tensor,
    right_BIR: torch.Tensor,
    *,
    scale: torch.Tensor | float = 1.0,
    bias: torch.Tensor | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """Y = x W'^T (+ bias), with W' = W - (scale / r) left right^T of each sequence.

    Args:
        x_BTI: inputs; every sequence of the batch has factors of its own.
        weight_OI: what all sequences share, in x's dtype.
        left_BOR, right_BIR: factors; "triton" rounds them to x's dtype.
        scale: eta, a number or a scalar tensor.
        bias: [O], in x's dtype.
        impl: "triton" (default on CUDA; float32, float16 or bfloat16, rank at most 128, one pass
            over x), "factored" (default elsewhere) or "merged" (the definition).

    Returns:
        y [B, T, O] in x's dtype; under autocast in autocast's.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.

    Source: construction 6.3 of our ProSG specification; the paper's own formula is unknown.
    """
    check_floating("x", x_BTI)
    if x_BTI.dim() != 3 or 0 in x_BTI.shape:
        raise ValueError(f"x: found shape {tuple(x_BTI.shape)}; allowed: [B, T, I], none of them 0")
    width = x_BTI.shape[2]
    check_shape("weight", weight_OI, (weight_OI.shape[0], width), "[O, I]")
    _check_factors(x_BTI, left_BOR, right_BIR, len(weight_OI), scale)
    if bias is not None:
        check_shape("bias", bias, (len(weight_OI),), "[O]")
    forms: dict[str, Callable[..., torch.Tensor]] = {
        "factored": factored_linear,
        "merged": merged_linear,
        "triton": _linear_triton,
    }
    run = choose(forms, impl or default_form(x_BTI, "factored"))
    return run(x_BTI, weight_OI, left_BOR, right_BIR, scale, bias)


def _linear_triton(x_BTI: torch.Tensor, *args: Any) -> torch.Tensor:
    check_triton_device("x", x_BTI)
    from forgetmenot_kernels.low_rank_linear.triton_linear import low_rank_linear as form

    return form(x_BTI, *args)


def low_rank_update(
    x_BTI: torch.Tensor,
    left_BOR: torch.Tensor,
    right_BIR: torch.Tensor,
    *,
    scale: torch.Tensor | float = 1.0,
    impl: str | None = None,
) -> torch.Tensor:
    """-(scale / r) (x right) left^T: what W' = W - (scale / r) left right^T adds to x W^T.

    Args:
        x_BTI: inputs of the linear map.
        left_BOR, right_BIR: factors of each sequence.
        scale: eta, a number or a scalar tensor.
        impl: "factored" (default; two small products) or "merged" (the definition).

    Returns:
        the change of the output, [B, T, O], in x's dtype.

    Raises:
        ValueError: a wrong shape or implementation, named.

    Source: construction 6.3 of our ProSG specification; the paper's own formula is unknown.
    """
    _check_factors(x_BTI, left_BOR, right_BIR, left_BOR.shape[1], scale)
    run = choose({"factored": factored, "merged": merged}, impl)
    return run(x_BTI, left_BOR, right_BIR, scale)


def _check_factors(
    x_BTI: torch.Tensor,
    left_BOR: torch.Tensor,
    right_BIR: torch.Tensor,
    outputs: int,
    scale: torch.Tensor | float,
) -> None:
    batch, _, width = x_BTI.shape
    rank = left_BOR.shape[-1]
    check_shape("left", left_BOR, (batch, outputs, rank), "[B, O, R]")
    check_shape("right", right_BIR, (batch, width, rank), "[B, I, R]")
    if isinstance(scale, torch.Tensor):
        check_shape("scale", scale, (), "[], or a number")
