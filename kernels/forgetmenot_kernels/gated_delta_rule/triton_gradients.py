# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Triton kernels of the backward pass after the states: the inputs' gradients, chunk by chunk."""

import triton
import triton.language as tl

from forgetmenot_kernels.gated_delta_rule.triton_tiles import (
    chunk_place,
    decay_between,
    decay_between_transposed,
    decay_to,
    load_decay,
    load_row,
    load_tile,
    store_tile,
    sum_across,
    sum_before,
    sum_from,
)


@triton.jit(do_not_specialize=["T"])
def output_gradient_kernel(
    q_ptr,
    k_ptr,
    written_ptr,
    states_ptr,
    dstates_ptr,
    decay_ptr,
    do_ptr,
    dwritten_ptr,
    dq_ptr,
    dk_ptr,
    dw_ptr,
    dg_ptr,
    places_ptr,
    scale,
    T,
    q_row,
    k_row,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    VARLEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Through the chunk's outputs, its last state and written = u - w state:
    dq, dw and what they give to dk and dg.
    """
    chunk, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    first, count = chunk_place(chunk, places_ptr, T, C, VARLEN)
    if count <= 0:
        return
    token = first * H + h
    q_ptr += first * q_row + h * K
    k_ptr += first * k_row + h * K
    written_ptr += token * V
    do_ptr += token * V
    dwritten_ptr += token * V
    states_ptr += (chunk * H + h) * K * V
    dstates_ptr += (chunk * H + h) * K * V
    dtype = k_ptr.dtype.element_ty
    t = tl.arange(0, C)
    decay, last = load_decay(decay_ptr + token, H, count, C)
    dP = tl.zeros([C, C], tl.float32)
    dP_T = tl.zeros([C, C], tl.float32)
    for v0 in range(0, V, BV):
        do = load_tile(do_ptr, H * V, count, v0, C, V, BV)
        written = load_tile(written_ptr, H * V, count, v0, C, V, BV)
        dP += tl.dot(do, tl.trans(written), input_precision=PRECISION)
        dP_T += tl.dot(written, tl.trans(do), input_precision=PRECISION)
    dP = dP * decay_between(decay, C) * scale
    dP_T = (dP_T * decay_between_transposed(decay, C) * scale).to(dtype)
    P = tl.zeros([C, C], tl.float32)
    ddecay = tl.zeros([C], tl.float32)
    kept = tl.zeros([C], tl.float32)
    dlast = 0.0
    for k0 in range(0, K, BK):
        dq = tl.zeros([C, BK], tl.float32)
        dk = tl.zeros([C, BK], tl.float32)
        dw = tl.zeros([C, BK], tl.float32)
        for v0 in range(0, V, BV):
            do = load_tile(do_ptr, H * V, count, v0, C, V, BV)
            written = load_tile(written_ptr, H * V, count, v0, C, V, BV)
            dwritten = load_tile(dwritten_ptr, H * V, count, v0, C, V, BV)
            state = load_tile(states_ptr + k0 * V, V, K - k0, v0, BK, V, BV)
            dstate = load_tile(dstates_ptr + k0 * V, V, K - k0, v0, BK, V, BV)
            dq += tl.dot(do, tl.trans(state), input_precision=PRECISION)
            dk += tl.dot(written, tl.trans(dstate), input_precision=PRECISION)
            dw -= tl.dot(dwritten, tl.trans(state), input_precision=PRECISION)
            dlast += tl.sum(state.to(tl.float32) * dstate.to(tl.float32))
        q = load_tile(q_ptr, q_row, count, k0, C, K, BK)
        k = load_tile(k_ptr, k_row, count, k0, C, K, BK)
        P += tl.dot(q, tl.trans(k), input_precision=PRECISION)
        dq = dq * (scale * decay_to(decay))[:, None]
        dk = dk * decay_to(last - decay)[:, None]
        ddecay += tl.sum(dq * q, 1)
        kept += tl.sum(dk * k, 1)
        dq += tl.dot(dP.to(dtype), k, input_precision=PRECISION)
        dk += tl.dot(dP_T, q, input_precision=PRECISION)
        store_tile(dq_ptr + token * K, dq, H * K, count, k0, C, K, BK)
        store_tile(dk_ptr + token * K, dk, H * K, count, k0, C, K, BK)
        store_tile(dw_ptr + token * K, dw, H * K, count, k0, C, K, BK)
    # On the diagonal the decay is exp(0), so it takes no part: with strong decay it would drown
    # the rest. `kept` counts for all later tokens of the chunk for the same reason.
    pairs = tl.where(t[:, None] > t[None, :], dP * P, 0.0)
    dg = sum_from(ddecay, C) + sum_before(kept, C) + decay_to(last) * dlast
    dg += sum_across(pairs, C)
    tl.store(dg_ptr + token + t * H, dg, mask=t < count)


@triton.jit(do_not_specialize=["T"])
def solve_gradient_kernel(
    k_ptr,
    v_ptr,
    beta_ptr,
    decay_ptr,
    X_ptr,
    w_ptr,
    u_ptr,
    dw_ptr,
    du_ptr,
    dk_part_ptr,
    dg_part_ptr,
    dk_ptr,
    dv_ptr,
    dg_ptr,
    dbeta_ptr,
    places_ptr,
    T,
    k_row,
    v_row,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    VARLEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Through w = X (beta e^decay k), u = X (beta v): dv, dbeta, and the whole of dk and dg.

    With y = X^T dw and z = X^T du, the gradient of A is -(y w^T + z u^T) below the diagonal.
    """
    h = tl.program_id(0) % H
    first, count = chunk_place(tl.program_id(0) // H, places_ptr, T, C, VARLEN)
    if count <= 0:
        return
    token = first * H + h
    k_ptr += first * k_row + h * K
    v_ptr += first * v_row + h * V
    w_ptr += token * K
    dw_ptr += token * K
    dk_part_ptr += token * K
    dk_ptr += token * K
    dtype = k_ptr.dtype.element_ty
    t = tl.arange(0, C)
    decay, _ = load_decay(decay_ptr + token, H, count, C)
    beta = load_row(beta_ptr + token, H, count, C)
    X = load_tile(X_ptr + token * C, H * C, count, 0, C, C, C)
    dA = tl.zeros([C, C], tl.float32)
    dA_T = tl.zeros([C, C], tl.float32)
    dbeta = tl.zeros([C], tl.float32)
    for v0 in range(0, V, BV):
        u = load_tile(u_ptr + token * V, H * V, count, v0, C, V, BV)
        du = load_tile(du_ptr + token * V, H * V, count, v0, C, V, BV)
        v = load_tile(v_ptr, v_row, count, v0, C, V, BV)
        z = tl.dot(tl.trans(X), du, input_precision=PRECISION)
        z_T = tl.dot(tl.trans(du), X, input_precision=PRECISION)
        dA -= tl.dot(z.to(dtype), tl.trans(u), input_precision=PRECISION)
        dA_T -= tl.dot(u, z_T.to(dtype), input_precision=PRECISION)
        dbeta += tl.sum(z * v, 1)
        store_tile(dv_ptr + token * V, z * beta[:, None], H * V, count, v0, C, V, BV)
    ddecay = tl.zeros([C], tl.float32)
    for k0 in range(0, K, BK):
        w = load_tile(w_ptr, H * K, count, k0, C, K, BK)
        dw = load_tile(dw_ptr, H * K, count, k0, C, K, BK)
        k = load_tile(k_ptr, k_row, count, k0, C, K, BK)
        y = tl.dot(tl.trans(X), dw, input_precision=PRECISION)
        y_T = tl.dot(tl.trans(dw), X, input_precision=PRECISION)
        dA -= tl.dot(y.to(dtype), tl.trans(w), input_precision=PRECISION)
        dA_T -= tl.dot(w, y_T.to(dtype), input_precision=PRECISION)
        ddecay += tl.sum(y * k, 1) * decay_to(decay)
    dbeta += ddecay
    ddecay = ddecay * beta
    below = t[:, None] > t[None, :]
    dA = tl.where(below, dA * decay_between(decay, C), 0.0)
    dA_T = dA_T * decay_between_transposed(decay, C) * beta[None, :]
    both = tl.where(below, dA * beta[:, None], tl.where(t[:, None] < t[None, :], dA_T, 0.0)).to(
        dtype
    )
    factor = beta * decay_to(decay)
    kk = tl.zeros([C, C], tl.float32)
    for k0 in range(0, K, BK):
        dw = load_tile(dw_ptr, H * K, count, k0, C, K, BK)
        k = load_tile(k_ptr, k_row, count, k0, C, K, BK)
        dk = load_tile(dk_part_ptr, H * K, count, k0, C, K, BK).to(tl.float32)
        kk += tl.dot(k, tl.trans(k), input_precision=PRECISION)
        dk += tl.dot(tl.trans(X), dw, input_precision=PRECISION) * factor[:, None]
        dk += tl.dot(both, k, input_precision=PRECISION)
        store_tile(dk_ptr, dk, H * K, count, k0, C, K, BK)
    pairs = dA * kk
    dg = load_row(dg_part_ptr + token, H, count, C)
    dg += sum_from(ddecay, C) + sum_across(pairs * beta[:, None], C)
    dbeta += tl.sum(pairs, 1)
    tl.store(dg_ptr + token + t * H, dg, mask=t < count)
    tl.store(dbeta_ptr + token + t * H, dbeta, mask=t < count)
