"""Public entries of RWKV-7's WKV: validation and dispatch."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from forgetmenot_kernels.checks import check_floating, check_shape, choose
from forgetmenot_kernels.packing import Packing, make_packing, pad, unpad
from forgetmenot_kernels.triton_device import check_triton_device, default_form
from forgetmenot_kernels.wkv7.reference import chunked, recurrent, step


def wkv7(
    r_BTHK: torch.Tensor,
    w_BTHK: torch.Tensor,
    k_BTHK: torch.Tensor,
    v_BTHV: torch.Tensor,
    a_BTHK: torch.Tensor,
    b_BTHK: torch.Tensor,
    *,
    initial_state_BHVK: torch.Tensor | None = None,
    output_final_state: bool = True,
    cu_seqlens: torch.Tensor | Packing | None = None,
    impl: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """S_t = S_{t-1} diag(exp(w_t)) + (S_{t-1} a_t) b_t^T + v_t k_t^T;  o_t = S_t r_t.

    The state S is [V, K], values by keys. RWKV-7 has a = -k_hat and b = k_hat * its in-context
    learning rate, k_hat of unit length, and w = -0.606531 sigmoid(.).

    Args:
        r_BTHK, k_BTHK: receptances (queries) and keys, T at least 1.
        w_BTHK: log of the decay, at most 0; any strength, down to exp(w) = 0.
        v_BTHV: values.
        a_BTHK, b_BTHK: what the state is read for, and the key that this is added to.
        initial_state_BHVK: state to continue from; zeros when None.
        output_final_state: return the state after the last token as well.
        cu_seqlens: integer [N + 1], rising strictly from 0 to T: r ... b are one row (B = 1) of N
            documents one after another; states are [N, H, V, K], one a document.
        impl: "triton" (default on CUDA; float32, float16 or bfloat16, K and V at most 256),
            "chunked" (default elsewhere; chunks of 32, matrix products) or "recurrent" (the
            definition).

    Returns:
        o_BTHV in v's dtype, and the final state [B or N, H, V, K] in float32 (float64 for float64
        input) or None.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.

    Source: RWKV-7 (arXiv 2503.14456); the update as in the ProSG specification, section 6.1.
    """
    inputs = (r_BTHK, w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK)
    _check_inputs(*inputs, "[B, T, H, ")
    forms: dict[str, Callable[..., Any]] = {
        "chunked": functools.partial(_run_padded, chunked),
        "recurrent": functools.partial(_run_padded, recurrent),
        "triton": _run_triton,
    }
    run = choose(forms, impl or default_form(r_BTHK, "chunked"))
    packing = None
    if cu_seqlens is not None:
        check_shape("r", r_BTHK, (1, *r_BTHK.shape[1:]), "[1, T, H, K] with cu_seqlens")
        packing = make_packing(cu_seqlens, r_BTHK.shape[1])
    batch, _, heads, key_dim = r_BTHK.shape
    shape = (packing.documents if packing else batch, heads, v_BTHV.shape[3], key_dim)
    state = r_BTHK.new_zeros(shape) if initial_state_BHVK is None else initial_state_BHVK
    check_shape("initial_state", state, shape, "[B or N, H, V, K]")
    check_floating("initial_state", state)
    o_BTHV, final = run(inputs, state, packing)
    return o_BTHV, final if output_final_state else None


def _run_padded(
    form: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    inputs: tuple[torch.Tensor, ...],
    state: torch.Tensor,
    packing: Packing | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A form that knows nothing of documents."""
    dtype = inputs[3].dtype
    state = state.to(torch.promote_types(inputs[0].dtype, torch.float32))
    if packing is None:
        o, final = form(*inputs, state)
        return o.to(dtype), final
    # Padding has w, k, a and b 0, so the state does not change in it.
    o, final = form(*(pad(x, packing) for x in inputs), state)
    return unpad(o, packing).to(dtype), final


def _run_triton(
    inputs: tuple[torch.Tensor, ...], state: torch.Tensor, packing: Packing | None
) -> tuple[torch.Tensor, torch.Tensor]:
    check_triton_device("r", inputs[0])
    from forgetmenot_kernels.wkv7.triton_wkv7 import wkv7 as form

    return form(inputs, state, packing)


def wkv7_step(
    r_BHK: torch.Tensor,
    w_BHK: torch.Tensor,
    k_BHK: torch.Tensor,
    v_BHV: torch.Tensor,
    a_BHK: torch.Tensor,
    b_BHK: torch.Tensor,
    state_BHVK: torch.Tensor,
    *,
    impl: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of every sequence; arguments as in `wkv7`, without the T.

    Args:
        r_BHK, w_BHK, k_BHK, v_BHV, a_BHK, b_BHK: as in `wkv7`.
        state_BHVK: float32 (or float64); may be overwritten: use the one returned.
        impl: "triton" (default on CUDA; float32 state, in place, no gradients) or "plain"
            (default elsewhere).

    Returns:
        o_BHV in v's dtype and the state after this token.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.
    """
    inputs = (r_BHK, w_BHK, k_BHK, v_BHV, a_BHK, b_BHK)
    _check_inputs(*inputs, "[B, H, ")
    shape = (*r_BHK.shape[:2], v_BHV.shape[-1], r_BHK.shape[-1])
    check_shape("state", state_BHVK, shape, "[B, H, V, K]")
    if state_BHVK.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"state: found dtype {state_BHVK.dtype}; allowed: float32, float64")
    forms: dict[str, Callable[..., Any]] = {"plain": step, "triton": _step_triton}
    o, state = choose(forms, impl or default_form(r_BHK, "plain"))(*inputs, state_BHVK)
    return o.to(v_BHV.dtype), state


def _step_triton(r: torch.Tensor, *args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    check_triton_device("r", r)
    from forgetmenot_kernels.wkv7.triton_step import step as form

    return form(r, *args)


def _check_inputs(
    r: torch.Tensor,
    w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    layout: str,
) -> None:
    """Raise TypeError or ValueError unless r, w, k, a, b [..., H, K] and v [..., H, V] fit."""
    for name, tensor in {"r": r, "w": w, "k": k, "v": v, "a": a, "b": b}.items():
        check_floating(name, tensor)
        if name == "r" and (r.dim() != layout.count(",") + 1 or 0 in r.shape):
            raise ValueError(
                f"r: found shape {tuple(r.shape)}; allowed: {layout}K], none of them 0"
            )
        width, letter = (v.shape[-1], "V") if name == "v" else (r.shape[-1], "K")
        check_shape(name, tensor, (*r.shape[:-1], width), f"{layout}{letter}]")
