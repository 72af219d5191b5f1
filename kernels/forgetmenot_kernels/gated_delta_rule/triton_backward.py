# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Triton kernels of the backward pass up to the states; notation as in README.md."""

import triton
import triton.language as tl

from forgetmenot_kernels.gated_delta_rule.triton_tiles import (
    chunk_place,
    decay_between_transposed,
    decay_to,
    load_decay,
    load_row,
    load_tile,
    store_tile,
)


@triton.jit(do_not_specialize=["T"])
def recompute_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    beta_ptr,
    decay_ptr,
    X_ptr,
    do_ptr,
    w_ptr,
    u_ptr,
    dwritten_ptr,
    places_ptr,
    scale,
    T,
    q_row,
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
    """Of one chunk: w and u again, and P^T do, its own outputs' part of the gradient of written."""
    h = tl.program_id(0) % H
    first, count = chunk_place(tl.program_id(0) // H, places_ptr, T, C, VARLEN)
    if count <= 0:
        return
    token = first * H + h
    q_ptr += first * q_row + h * K
    k_ptr += first * k_row + h * K
    v_ptr += first * v_row + h * V
    dtype = k_ptr.dtype.element_ty
    X = load_tile(X_ptr + token * C, H * C, count, 0, C, C, C)
    decay, _ = load_decay(decay_ptr + token, H, count, C)
    beta = load_row(beta_ptr + token, H, count, C)
    factor = beta * decay_to(decay)
    P_T = tl.zeros([C, C], tl.float32)
    for k0 in range(0, K, BK):
        q = load_tile(q_ptr, q_row, count, k0, C, K, BK)
        k = load_tile(k_ptr, k_row, count, k0, C, K, BK)
        P_T += tl.dot(k, tl.trans(q), input_precision=PRECISION)
        w = tl.dot(X, (k * factor[:, None]).to(dtype), input_precision=PRECISION)
        store_tile(w_ptr + token * K, w, H * K, count, k0, C, K, BK)
    P_T = (P_T * decay_between_transposed(decay, C) * scale).to(dtype)
    for v0 in range(0, V, BV):
        v = load_tile(v_ptr, v_row, count, v0, C, V, BV)
        u = tl.dot(X, (v * beta[:, None]).to(dtype), input_precision=PRECISION)
        store_tile(u_ptr + token * V, u, H * V, count, v0, C, V, BV)
        do = load_tile(do_ptr + token * V, H * V, count, v0, C, V, BV)
        dwritten = tl.dot(P_T, do, input_precision=PRECISION)
        store_tile(dwritten_ptr + token * V, dwritten, H * V, count, v0, C, V, BV)


@triton.jit(do_not_specialize=["T"])
def dstates_kernel(
    q_ptr,
    k_ptr,
    w_ptr,
    decay_ptr,
    do_ptr,
    dfinal_ptr,
    local_ptr,
    dwritten_ptr,
    dstates_ptr,
    dinitial_ptr,
    cu_ptr,
    chunk_start_ptr,
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
    HAS_DFINAL: tl.constexpr,
    HAS_DINITIAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Chunks from last to first, BV columns: gradient of the state after each chunk, and of
    written (`local` holds the part from the chunk's own outputs).
    """
    tiles: tl.constexpr = (V + BV - 1) // BV
    v0 = (tl.program_id(0) % tiles) * BV
    head = (tl.program_id(0) // tiles).to(tl.int64)
    n, h = head // H, head % H
    if VARLEN:
        first = tl.load(cu_ptr + n)
        length = (tl.load(cu_ptr + n + 1) - first).to(tl.int32)
        chunk = tl.load(chunk_start_ptr + n)
    else:
        first, length = n * T, T
        chunk = n * ((T + C - 1) // C)
    chunks = (length + C - 1) // C
    dtype = k_ptr.dtype.element_ty
    dstate = tl.zeros([BK, BV], tl.float32)
    if HAS_DFINAL:
        dstate += load_tile(dfinal_ptr + head * K * V, V, K, v0, BK, V, BV)
    for step in range(0, chunks):
        start = (chunks - 1 - step) * C
        count = length - start
        place = first + start
        token = place * H + h
        here = ((chunk + chunks - 1 - step) * H + h) * K * V
        store_tile(dstates_ptr + here, dstate, V, K, v0, BK, V, BV)
        q = load_tile(q_ptr + place * q_row + h * K, q_row, count, 0, C, K, BK)
        k = load_tile(k_ptr + place * k_row + h * K, k_row, count, 0, C, K, BK)
        w = load_tile(w_ptr + token * K, H * K, count, 0, C, K, BK)
        do = load_tile(do_ptr + token * V, H * V, count, v0, C, V, BV)
        local = load_tile(local_ptr + token * V, H * V, count, v0, C, V, BV)
        decay, last = load_decay(decay_ptr + token, H, count, C)
        dwritten = tl.dot(k, dstate.to(dtype), input_precision=PRECISION)
        dwritten = local + dwritten * decay_to(last - decay)[:, None]
        store_tile(dwritten_ptr + token * V, dwritten, H * V, count, v0, C, V, BV)
        do = (do * (scale * decay_to(decay))[:, None]).to(dtype)
        dstate = dstate * decay_to(last)
        dstate += tl.dot(tl.trans(q), do, input_precision=PRECISION)
        dstate -= tl.dot(tl.trans(w), dwritten.to(dtype), input_precision=PRECISION)
    if HAS_DINITIAL:
        store_tile(dinitial_ptr + head * K * V, dstate, V, K, v0, BK, V, BV)
