"""Public entry of the short causal convolution: validation and dispatch."""

import torch

from forgetmenot_kernels.checks import check_floating, check_shape, choose
from forgetmenot_kernels.short_conv.reference import recurrent, shifted


def short_conv(
    x_BTD: torch.Tensor,
    weight_DW: torch.Tensor,
    *,
    initial_state_BWD: torch.Tensor | None = None,
    impl: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y_t = SiLU(sum_w weight[:, w] * x_{t - (W - 1) + w}), each channel on its own.

    Args:
        x_BTD: inputs.
        weight_DW: taps, the last one for the current token.
        initial_state_BWD: the W - 1 inputs before x, oldest first; zeros when None.
        impl: "shifted" (default; a sum of W shifted products) or "recurrent" (the definition).

    Returns:
        y_BTD and the state [B, W - 1, D] to continue with.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.

    Source: Gated DeltaNet (arXiv 2412.06464); width 4, SiLU, no bias as in LTE's specification.
    """
    batch, _, width = x_BTD.shape
    check_floating("x", x_BTD)
    check_shape("weight", weight_DW, (width, weight_DW.shape[-1]), "[D, W]")
    taps = weight_DW.shape[-1]
    if initial_state_BWD is None:
        initial_state_BWD = x_BTD.new_zeros(batch, taps - 1, width)
    check_shape("initial_state", initial_state_BWD, (batch, taps - 1, width), "[B, W - 1, D]")
    return choose({"shifted": shifted, "recurrent": recurrent}, impl)(
        x_BTD, weight_DW, initial_state_BWD
    )
