"""Public entry of the per-sequence low-rank update: validation and dispatch."""

import torch

from forgetmenot_kernels.checks import check_shape, choose
from forgetmenot_kernels.low_rank_linear.reference import factored, merged


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
    batch, _, width = x_BTI.shape
    rank = left_BOR.shape[-1]
    check_shape("left", left_BOR, (batch, left_BOR.shape[1], rank), "[B, O, R]")
    check_shape("right", right_BIR, (batch, width, rank), "[B, I, R]")
    run = choose({"factored": factored, "merged": merged}, impl)
    return run(x_BTI, left_BOR, right_BIR, scale)
