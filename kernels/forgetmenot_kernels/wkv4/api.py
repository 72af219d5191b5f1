"""Public entry of RWKV-4's WKV: validation and dispatch."""

import torch

from forgetmenot_kernels.checks import check_floating, check_shape, choose
from forgetmenot_kernels.packing import Packing, make_packing, pad, unpad
from forgetmenot_kernels.wkv4.reference import WKV4State, recurrent, scan


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
        impl: "scan" (default; log2 T doubling steps) or "recurrent" (the definition).

    Returns:
        wkv_BTD in v's dtype and the state after the last token.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.

    Source: RWKV (arXiv 2305.13048); the update as in the ProSG specification, section 6.1.
    """
    check_floating("k", k_BTD)
    check_shape("v", v_BTD, tuple(k_BTD.shape), "[B, T, D]")
    width = k_BTD.shape[2]
    check_shape("decay", decay_D, (width,), "[D]")
    check_shape("bonus", bonus_D, (width,), "[D]")
    run = choose({"scan": scan, "recurrent": recurrent}, impl)
    packing = None
    if cu_seqlens is not None:
        check_shape("k", k_BTD, (1, *k_BTD.shape[1:]), "[1, T, D] beside cu_seqlens")
        packing = make_packing(cu_seqlens, k_BTD.shape[1])
        k_BTD, v_BTD = pad(k_BTD, packing), pad(v_BTD, packing)
    if initial_state is None:
        initial_state = WKV4State.empty(k_BTD)
    for name, part in zip(WKV4State._fields, initial_state, strict=True):
        check_shape(f"initial_state.{name}", part, (len(k_BTD), width), "[B or N, D]")
    last_B = None if packing is None else packing.lengths_N - 1
    wkv, state = run(k_BTD, v_BTD, decay_D, bonus_D, initial_state, last_B)
    return wkv if packing is None else unpad(wkv, packing), state
