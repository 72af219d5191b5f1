"""Public entries of RWKV-4's WKV: validation and dispatch."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from forgetmenot_kernels.checks import check_floating, check_shape, choose
from forgetmenot_kernels.packing import Packing, make_packing, pad, unpad
from forgetmenot_kernels.triton_device import check_triton_device, default_form
from forgetmenot_kernels.wkv4.reference import WKV4State, recurrent, scan, step


def wkv4(
    k_BTD: torch.Tensor,
    v_BTD: torch.Tensor,
    decay_D: torch.Tensor,
    bonus_D: torch.Tensor,
    *,
    initial_state: WKV4State | None = None,
    cu_seqlens: torch.Tensor | Packing | None = None,
    impl: str | None = None,
) -> tuple[torch.Tensor, WKV4State]:
    """wkv_t = (a_{t-1} + e^{u + k_t} v_t) / (b_{t-1} + e^{u + k_t}).

    a_t = e^{-w} a_{t-1} + e^{k_t} v_t, and b follows a with v = 1. Numerator and denominator are
    kept as a e^p, b e^p with the running maximum p of the exponents, so any finite k is safe.

    Args:
        k_BTD, v_BTD: keys (log weights) and values.
        decay_D: w, above 0: the decay of a step is exp(-w).
        bonus_D: u, the extra log weight of the current token.
        initial_state: (a, b, p), each float32 [B or N, D]; empty when None.
        cu_seqlens: borders [N + 1] of documents packed into one row (B = 1); the state is theirs.
        impl: "triton" (default on CUDA; float32, float16 or bfloat16), "scan" (default elsewhere;
            pairs, pairs of pairs, ...) or "recurrent" (the definition).

    Returns:
        wkv_BTD in v's dtype and the state after the last token.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.

    Source: RWKV (arXiv 2305.13048); the update as in the ProSG specification, section 6.1.
    """
    check_floating("k", k_BTD)
    if k_BTD.dim() != 3 or 0 in k_BTD.shape:
        raise ValueError(f"k: found shape {tuple(k_BTD.shape)}; allowed: [B, T, D], none of them 0")
    check_shape("v", v_BTD, tuple(k_BTD.shape), "[B, T, D]")
    width = k_BTD.shape[2]
    check_shape("decay", decay_D, (width,), "[D]")
    check_shape("bonus", bonus_D, (width,), "[D]")
    forms: dict[str, Callable[..., Any]] = {
        "scan": functools.partial(_run_padded, scan),
        "recurrent": functools.partial(_run_padded, recurrent),
        "triton": _run_triton,
    }
    run = choose(forms, impl or default_form(k_BTD, "scan"))
    packing = None
    if cu_seqlens is not None:
        check_shape("k", k_BTD, (1, *k_BTD.shape[1:]), "[1, T, D] beside cu_seqlens")
        packing = make_packing(cu_seqlens, k_BTD.shape[1])
    states = packing.documents if packing else len(k_BTD)
    if initial_state is None:
        initial_state = WKV4State.empty(k_BTD[:, :1].expand(states, 1, width))
    for name, part in zip(WKV4State._fields, initial_state, strict=True):
        check_shape(f"initial_state.{name}", part, (states, width), "[B or N, D]")
    return run(k_BTD, v_BTD, decay_D, bonus_D, initial_state, packing)


def _run_padded(
    form: Callable[..., tuple[torch.Tensor, WKV4State]],
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    bonus: torch.Tensor,
    state: WKV4State,
    packing: Packing | None,
) -> tuple[torch.Tensor, WKV4State]:
    """A form that knows nothing of documents."""
    if packing is None:
        return form(k, v, decay, bonus, state, None)
    k, v = pad(k, packing), pad(v, packing)
    wkv, state = form(k, v, decay, bonus, state, packing.lengths_N - 1)
    return unpad(wkv, packing), state


def _run_triton(k: torch.Tensor, *args: Any) -> tuple[torch.Tensor, WKV4State]:
    check_triton_device("k", k)
    from forgetmenot_kernels.wkv4.triton_wkv4 import wkv4 as form

    return form(k, *args)


def wkv4_step(
    k_BD: torch.Tensor,
    v_BD: torch.Tensor,
    decay_D: torch.Tensor,
    bonus_D: torch.Tensor,
    state: WKV4State,
    *,
    impl: str | None = None,
) -> tuple[torch.Tensor, WKV4State]:
    """One token of every sequence; arguments as in `wkv4`, without the T.

    Args:
        k_BD, v_BD, decay_D, bonus_D: as in `wkv4`.
        state: (a, b, p), each float32 (or float64) [B, D]; may be overwritten: use the one
            returned.
        impl: "triton" (default on CUDA; float32 state, in place, no gradients) or "plain"
            (default elsewhere).

    Returns:
        wkv_BD in v's dtype and the state after this token.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.
    """
    check_floating("k", k_BD)
    check_shape("v", v_BD, tuple(k_BD.shape), "[B, D]")
    check_shape("decay", decay_D, tuple(k_BD.shape[1:]), "[D]")
    check_shape("bonus", bonus_D, tuple(k_BD.shape[1:]), "[D]")
    for name, part in zip(WKV4State._fields, state, strict=True):
        check_shape(f"state.{name}", part, tuple(k_BD.shape), "[B, D]")
        if part.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"state.{name}: found dtype {part.dtype}; allowed: float32, float64")
    forms: dict[str, Callable[..., Any]] = {"plain": step, "triton": _step_triton}
    run = choose(forms, impl or default_form(k_BD, "plain"))
    wkv_BD, state = run(k_BD, v_BD, decay_D, bonus_D, state)
    return wkv_BD.to(v_BD.dtype), state


def _step_triton(k: torch.Tensor, *args: Any) -> tuple[torch.Tensor, WKV4State]:
    check_triton_device("k", k)
    from forgetmenot_kernels.wkv4.triton_wkv4 import step as form

    return form(k, *args)
