"""Public entries of the gated delta rule: validation and dispatch."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from forgetmenot_kernels.checks import check_floating, check_shape, choose
from forgetmenot_kernels.gated_delta_rule.reference import chunked, recurrent, step, unit_length
from forgetmenot_kernels.packing import Packing, make_packing, pad, unpad
from forgetmenot_kernels.triton_device import check_triton_device, default_form


def gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    *,
    scale: float | None = None,
    qk_l2norm: bool = False,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | Packing | None = None,
    impl: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T;  o_t = scale S_t^T q_t.

    Args:
        q, k: queries and keys [B, T, H, K], T at least 1.
        v: values [B, T, H, V].
        g: log of the decay [B, T, H], at most 0.
        beta: writing strength [B, T, H], in [0, 1].
        scale: of the queries; K**-0.5 when None.
        qk_l2norm: bring q and k to unit length first: x / sqrt(|x|^2 + 1e-6).
        initial_state: state to continue from [B, H, K, V]; zeros when None.
        output_final_state: return the state after the last token as well.
        cu_seqlens: integer [N + 1], rising strictly from 0 to T: q ... beta are one row (B = 1) of
            N documents one after another; states are [N, H, K, V], one a document.
        impl: "triton" (default on CUDA; q, k, v float32, float16 or bfloat16, K and V at most 256),
            "chunked" (default elsewhere; chunks of 16, matrix products) or "recurrent" (the
            definition).

    Returns:
        o [B, T, H, V] in v's dtype, and the final state [B, H, K, V] in float32 (float64 for
        float64 input) or None.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.

    Source: Gated DeltaNet (arXiv 2412.06464); the rule as in the LTE specification, section 1.4.
    """
    check_inputs(q, k, v, g, beta, "[B, T, H, ")
    forms: dict[str, Callable[..., Any]] = {
        "chunked": functools.partial(_run_padded, chunked),
        "recurrent": functools.partial(_run_padded, recurrent),
        "triton": _run_triton,
    }
    run = choose(forms, impl or default_form(q, "chunked"))
    packing = None
    if cu_seqlens is not None:
        check_shape("q", q, (1, *q.shape[1:]), "[1, T, H, K] with cu_seqlens")
        packing = make_packing(cu_seqlens, q.shape[1])
    if initial_state is not None:
        batch = packing.documents if packing else len(q)
        shape = (batch, q.shape[2], q.shape[3], v.shape[3])
        check_shape("initial_state", initial_state, shape, "[B or N, H, K, V]")
        check_floating("initial_state", initial_state)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return run(q, k, v, g, beta, scale, qk_l2norm, initial_state, output_final_state, packing)


def _run_padded(
    form: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float,
    qk_l2norm: bool,
    initial_state: torch.Tensor | None,
    output_final_state: bool,
    packing: Packing | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A form that knows nothing of documents and lengths."""
    dtype = v.dtype
    if qk_l2norm:
        q, k = unit_length(q), unit_length(k)
    if packing:
        # Padding has g 0 and beta 0, so the state does not change in it.
        q, k, v, g, beta = (pad(x, packing) for x in (q, k, v, g, beta))
    o, final = form(q, k, v, g, beta, scale, initial_state)
    if packing:
        o = unpad(o, packing)
    return o.to(dtype), final if output_final_state else None


def _run_triton(q: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    check_triton_device("q", q)
    from forgetmenot_kernels.gated_delta_rule.triton_rule import gated_delta_rule as form

    return form(q, *args)


def gated_delta_rule_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    *,
    scale: float | None = None,
    qk_l2norm: bool = False,
    impl: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of every sequence; arguments as in `gated_delta_rule`, without the T.

    Args:
        q, k: [B, H, K]; v: [B, H, V]; g, beta: [B, H].
        state: [B, H, K, V], float32 (or float64); may be overwritten: use the one returned.
        scale, qk_l2norm: as in `gated_delta_rule`.
        impl: "triton" (default on CUDA; float32 state, in place, no gradients) or "plain"
            (default elsewhere).

    Returns:
        o [B, H, V] in v's dtype and the state after this token.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.
    """
    check_inputs(q, k, v, g, beta, "[B, H, ")
    check_shape("state", state, (*q.shape, v.shape[-1]), "[B, H, K, V]")
    if state.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"state: found dtype {state.dtype}; allowed: float32, float64")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    forms: dict[str, Callable[..., Any]] = {"plain": _step_plain, "triton": _step_triton}
    run = choose(forms, impl or default_form(q, "plain"))
    return run(q, k, v, g, beta, state, scale, qk_l2norm)


def _step_plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    scale: float,
    qk_l2norm: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    if qk_l2norm:
        q, k = unit_length(q), unit_length(k)
    o, state = step(q, k, v, g, beta, scale, state)
    return o.to(v.dtype), state


def _step_triton(q: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    check_triton_device("q", q)
    from forgetmenot_kernels.gated_delta_rule.triton_step import step as form

    return form(q, *args)


def check_inputs(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    layout: str,
) -> None:
    """Raise TypeError or ValueError unless q, k [..., K], v [..., V], g, beta [...] fit."""
    for name, tensor in {"q": q, "k": k, "v": v, "g": g, "beta": beta}.items():
        check_floating(name, tensor)
    dims = layout.count(",") + 1
    if q.dim() != dims or 0 in q.shape:
        raise ValueError(f"q: found shape {tuple(q.shape)}; allowed: {layout}K], none of them 0")
    heads = tuple(q.shape[:-1])
    check_shape("k", k, tuple(q.shape), f"{layout}K]")
    check_shape("v", v, (*heads, v.shape[-1]), f"{layout}V]")
    check_shape("g", g, heads, f"{layout[:-2]}]")
    check_shape("beta", beta, heads, f"{layout[:-2]}]")
