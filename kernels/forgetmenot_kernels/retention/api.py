"""Public entries of retention: validation and dispatch."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from forgetmenot_kernels.checks import check_floating, check_shape, choose
from forgetmenot_kernels.packing import Packing, make_packing, pad, unpad
from forgetmenot_kernels.retention.reference import chunked, recurrent, step
from forgetmenot_kernels.triton_device import check_triton_device, default_form


def retention(
    q_BTHK: torch.Tensor,
    k_BTHK: torch.Tensor,
    v_BTHV: torch.Tensor,
    log_decay_H: torch.Tensor,
    *,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = True,
    cu_seqlens: torch.Tensor | Packing | None = None,
    impl: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """S_t = exp(log_decay) S_{t-1} + k_t v_t^T;  o_t = scale S_t^T q_t.

    Args:
        q_BTHK, k_BTHK: queries and keys, T at least 1.
        v_BTHV: values.
        log_decay_H: log of a step's decay, a head, at most 0 (RetNet: log(1 - 2^(-5 - h))).
        scale: of the queries; K**-0.5 when None.
        initial_state: state to continue from [B, H, K, V]; zeros when None.
        output_final_state: return the state after the last token as well.
        cu_seqlens: integer [N + 1], rising strictly from 0 to T: q, k, v are one row (B = 1) of N
            documents one after another; states are [N, H, K, V], one a document.
        impl: "triton" (default on CUDA; q, k, v float32, float16 or bfloat16, K and V at most 256),
            "chunked" (default elsewhere; chunks of 64, matrix products) or "recurrent" (the
            definition).

    Returns:
        o_BTHV in v's dtype, and the final state [B or N, H, K, V] in float32 (float64 for float64
        input) or None.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.

    Source: RetNet (arXiv 2307.08621); the update as in the ProSG specification, section 6.1.
    """
    _check_inputs(q_BTHK, k_BTHK, v_BTHV, log_decay_H, "[B, T, H, ")
    forms: dict[str, Callable[..., Any]] = {
        "chunked": functools.partial(_run_padded, chunked),
        "recurrent": functools.partial(_run_padded, recurrent),
        "triton": _run_triton,
    }
    run = choose(forms, impl or default_form(q_BTHK, "chunked"))
    packing = None
    if cu_seqlens is not None:
        check_shape("q", q_BTHK, (1, *q_BTHK.shape[1:]), "[1, T, H, K] with cu_seqlens")
        packing = make_packing(cu_seqlens, q_BTHK.shape[1])
    batch, _, heads, key_dim = q_BTHK.shape
    shape = (packing.documents if packing else batch, heads, key_dim, v_BTHV.shape[3])
    if initial_state is None:
        initial_state = q_BTHK.new_zeros(shape)
    check_shape("initial_state", initial_state, shape, "[B or N, H, K, V]")
    check_floating("initial_state", initial_state)
    scale = key_dim**-0.5 if scale is None else float(scale)
    o, final = run(q_BTHK, k_BTHK, v_BTHV, log_decay_H, scale, initial_state, packing)
    return o, final if output_final_state else None


def _run_padded(
    form: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    scale: float,
    state: torch.Tensor,
    packing: Packing | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A form that knows nothing of documents."""
    dtype, state = v.dtype, state.to(torch.promote_types(q.dtype, torch.float32))
    if packing is None:
        o, final = form(q, k, v, log_decay, scale, state, None)
        return o.to(dtype), final
    q, k, v = (pad(x, packing) for x in (q, k, v))
    o, final = form(q, k, v, log_decay, scale, state, packing.lengths_N)
    return unpad(o, packing).to(dtype), final


def _run_triton(q: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    check_triton_device("q", q)
    from forgetmenot_kernels.retention.triton_retention import retention as form

    return form(q, *args)


def retention_step(
    q_BHK: torch.Tensor,
    k_BHK: torch.Tensor,
    v_BHV: torch.Tensor,
    log_decay_H: torch.Tensor,
    state_BHKV: torch.Tensor,
    *,
    scale: float | None = None,
    impl: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of every sequence; arguments as in `retention`, without the T.

    Args:
        q_BHK, k_BHK, v_BHV, log_decay_H, scale: as in `retention`.
        state_BHKV: float32 (or float64); may be overwritten: use the one returned.
        impl: "triton" (default on CUDA; float32 state, in place, no gradients) or "plain"
            (default elsewhere).

    Returns:
        o_BHV in v's dtype and the state after this token.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.
    """
    _check_inputs(q_BHK, k_BHK, v_BHV, log_decay_H, "[B, H, ")
    check_shape("state", state_BHKV, (*q_BHK.shape, v_BHV.shape[-1]), "[B, H, K, V]")
    if state_BHKV.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"state: found dtype {state_BHKV.dtype}; allowed: float32, float64")
    scale = q_BHK.shape[-1] ** -0.5 if scale is None else float(scale)
    forms: dict[str, Callable[..., Any]] = {"plain": step, "triton": _step_triton}
    run = choose(forms, impl or default_form(q_BHK, "plain"))
    o, state = run(q_BHK, k_BHK, v_BHV, log_decay_H, scale, state_BHKV)
    return o.to(v_BHV.dtype), state


def _step_triton(q: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    check_triton_device("q", q)
    from forgetmenot_kernels.retention.triton_retention import step as form

    return form(q, *args)


def _check_inputs(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, layout: str
) -> None:
    """Raise TypeError or ValueError unless q, k [..., H, K], v [..., H, V], log_decay [H] fit."""
    for name, tensor in {"q": q, "k": k, "v": v, "log_decay": log_decay}.items():
        check_floating(name, tensor)
    if q.dim() != layout.count(",") + 1 or 0 in q.shape:
        raise ValueError(f"q: found shape {tuple(q.shape)}; allowed: {layout}K], none of them 0")
    check_shape("k", k, tuple(q.shape), f"{layout}K]")
    check_shape("v", v, (*q.shape[:-1], v.shape[-1]), f"{layout}V]")
    check_shape("log_decay", log_decay, (q.shape[-2],), "[H]")
