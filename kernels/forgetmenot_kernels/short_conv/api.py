"""Public entry of the short causal convolution: validation and dispatch."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from forgetmenot_kernels.checks import check_floating, check_shape, choose
from forgetmenot_kernels.packing import Packing, make_packing, pad, unpad
from forgetmenot_kernels.short_conv.reference import last_inputs, recurrent, shifted, step
from forgetmenot_kernels.triton_device import check_triton_device, default_form


def short_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = True,
    cu_seqlens: torch.Tensor | Packing | None = None,
    impl: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """y_t = SiLU(sum_w weight[:, w] * x_{t - (W - 1) + w}), each channel on its own.

    Args:
        x: inputs [B, T, D], T at least 1.
        weight: taps [D, W], the last one for the current token.
        initial_state: the W - 1 inputs before x [B, W - 1, D], oldest first; zeros when None.
        output_final_state: return the last W - 1 inputs as well.
        cu_seqlens: integer [N + 1], rising strictly from 0 to T: x is one row (B = 1) of N
            documents one after another; states are [N, W - 1, D], one a document.
        impl: "triton" (default on CUDA; float32, float16 or bfloat16), "shifted" (default
            elsewhere; a sum of W shifted products) or "recurrent" (the definition).

    Returns:
        y [B, T, D], and the state [B, W - 1, D] to continue with (x's dtype) or None.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.

    Source: Gated DeltaNet (arXiv 2412.06464); width 4, SiLU, no bias as in LTE's specification.
    """
    check_floating("x", x)
    check_floating("weight", weight)
    if x.dim() != 3 or 0 in x.shape:
        raise ValueError(f"x: found shape {tuple(x.shape)}; allowed: [B, T, D], none of them 0")
    _check_weight(weight, x.shape[2])
    forms: dict[str, Callable[..., Any]] = {
        "shifted": functools.partial(_run_padded, shifted),
        "recurrent": functools.partial(_run_padded, recurrent),
        "triton": _run_triton,
    }
    run = choose(forms, impl or default_form(x, "shifted"))
    packing = None
    if cu_seqlens is not None:
        check_shape("x", x, (1, *x.shape[1:]), "[1, T, D] with cu_seqlens")
        packing = make_packing(cu_seqlens, x.shape[1])
    shape = (packing.documents if packing else len(x), weight.shape[1] - 1, x.shape[2])
    if initial_state is None:
        initial_state = x.new_zeros(shape)
    check_shape("initial_state", initial_state, shape, "[B or N, W - 1, D]")
    initial_state = initial_state.to(x.dtype)
    y = run(x, weight, initial_state, packing)
    return y, last_inputs(x, initial_state, packing) if output_final_state else None


def short_conv_step(
    x: torch.Tensor,
    weight: torch.Tensor,
    state: torch.Tensor,
    *,
    impl: str | None = None,
) -> torch.Tensor:
    """One token of every sequence; the state is changed in place: no new tensor, no waiting.

    Args:
        x: inputs [B, D].
        weight: taps [D, W], as in `short_conv`.
        state: the W - 1 inputs before x [B, W - 1, D], oldest first, contiguous, as `short_conv`
            returns it. The oldest is dropped and x appended.
        impl: "triton" (default on CUDA; float32, float16 or bfloat16; one launch, which a CUDA
            graph can hold) or "plain" (default elsewhere).

    Returns:
        y [B, D]. No gradients: `short_conv` with T = 1 has them.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, a state that is not
            contiguous, or inputs that require a gradient, named.
    """
    for name, tensor in {"x": x, "weight": weight, "state": state}.items():
        check_floating(name, tensor)
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(f"{name}: found one that requires a gradient; allowed: none in a step")
    if x.dim() != 2 or 0 in x.shape:
        raise ValueError(f"x: found shape {tuple(x.shape)}; allowed: [B, D], none of them 0")
    _check_weight(weight, x.shape[1])
    check_shape("state", state, (len(x), weight.shape[1] - 1, x.shape[1]), "[B, W - 1, D]")
    if not state.is_contiguous():
        raise ValueError(f"state: found strides {state.stride()}; allowed: contiguous")
    forms: dict[str, Callable[..., torch.Tensor]] = {"plain": step, "triton": _step_triton}
    return choose(forms, impl or default_form(x, "plain"))(x, weight, state)


def _step_triton(x: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
    check_triton_device("x", x)
    from forgetmenot_kernels.short_conv.triton_conv import short_conv_step as form

    return form(x, *args)


def _check_weight(weight: torch.Tensor, width: int) -> None:
    if weight.dim() != 2 or len(weight) != width or weight.shape[1] == 0:
        raise ValueError(
            f"weight: found shape {tuple(weight.shape)}; allowed: ({width}, W), W at least 1"
        )


def _run_padded(
    form: Callable[..., torch.Tensor],
    x: torch.Tensor,
    weight: torch.Tensor,
    initial_state: torch.Tensor,
    packing: Packing | None,
) -> torch.Tensor:
    """A form that knows nothing of documents."""
    if packing is None:
        return form(x, weight, initial_state)
    return unpad(form(pad(x, packing), weight, initial_state), packing)


def _run_triton(x: torch.Tensor, *args: Any) -> torch.Tensor:
    check_triton_device("x", x)
    from forgetmenot_kernels.short_conv.triton_conv import short_conv as form

    return form(x, *args)
