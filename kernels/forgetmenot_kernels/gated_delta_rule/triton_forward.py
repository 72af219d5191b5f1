# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Triton kernels of the forward pass; notation as in README.md."""

import triton
import triton.language as tl

from forgetmenot_kernels.gated_delta_rule.triton_tiles import (
    chunk_place,
    decay_between,
    decay_to,
    load_decay,
    load_row,
    load_tile,
    store_tile,
    unit_lower_inverse,
)


@triton.jit(do_not_specialize=["T"])
def solve_kernel(
    k_ptr,
    v_ptr,
    g_ptr,
    beta_ptr,
    decay_ptr,
    X_ptr,
    w_ptr,
    u_ptr,
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
    INVERSE_PRECISION: tl.constexpr,
):
    """Of one chunk: decay = cumsum(g), X = (I + A)^-1, w = X (beta e^decay k), u = X (beta v)."""
    h = tl.program_id(0) % H
    first, count = chunk_place(tl.program_id(0) // H, places_ptr, T, C, VARLEN)
    if count <= 0:
        return
    token = first * H + h
    k_ptr += first * k_row + h * K
    v_ptr += first * v_row + h * V
    dtype = k_ptr.dtype.element_ty
    t = tl.arange(0, C)
    decay = tl.cumsum(load_row(g_ptr + token, H, count, C).to(tl.float64), 0)
    tl.store(decay_ptr + token + t * H, decay, mask=t < count)
    beta = load_row(beta_ptr + token, H, count, C)
    A = tl.zeros([C, C], tl.float32)
    for k0 in range(0, K, BK):
        k = load_tile(k_ptr, k_row, count, k0, C, K, BK)
        A += tl.dot(k, tl.trans(k), input_precision=PRECISION)
    A = tl.where(t[:, None] > t[None, :], A * beta[:, None] * decay_between(decay, C), 0.0)
    X = unit_lower_inverse(A, C, INVERSE_PRECISION).to(dtype)
    store_tile(X_ptr + token * C, X, H * C, count, 0, C, C, C)
    scale = beta * decay_to(decay)
    for k0 in range(0, K, BK):
        k = load_tile(k_ptr, k_row, count, k0, C, K, BK)
        w = tl.dot(X, (k * scale[:, None]).to(dtype), input_precision=PRECISION)
        store_tile(w_ptr + token * K, w, H * K, count, k0, C, K, BK)
    for v0 in range(0, V, BV):
        v = load_tile(v_ptr, v_row, count, v0, C, V, BV)
        u = tl.dot(X, (v * beta[:, None]).to(dtype), input_precision=PRECISION)
        store_tile(u_ptr + token * V, u, H * V, count, v0, C, V, BV)


@triton.jit(do_not_specialize=["T"])
def states_kernel(
    k_ptr,
    w_ptr,
    u_ptr,
    decay_ptr,
    initial_ptr,
    states_ptr,
    written_ptr,
    final_ptr,
    cu_ptr,
    chunk_start_ptr,
    T,
    k_row,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    VARLEN: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Chunk after chunk, BV columns: each chunk's first state, and written = u - w state."""
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
    k_ptr += first * k_row + h * K
    token = first * H + h
    w_ptr += token * K
    u_ptr += token * V
    written_ptr += token * V
    decay_ptr += token
    states_ptr += (chunk * H + h) * K * V
    dtype = k_ptr.dtype.element_ty
    state = tl.zeros([BK, BV], tl.float32)
    if HAS_INITIAL:
        state += load_tile(initial_ptr + head * K * V, V, K, v0, BK, V, BV).to(tl.float32)
    for start in range(0, length, C):
        count = length - start
        store_tile(states_ptr, state, V, K, v0, BK, V, BV)
        w = load_tile(w_ptr, H * K, count, 0, C, K, BK)
        k = load_tile(k_ptr, k_row, count, 0, C, K, BK)
        u = load_tile(u_ptr, H * V, count, v0, C, V, BV)
        decay, last = load_decay(decay_ptr, H, count, C)
        written = u - tl.dot(w, state.to(dtype), input_precision=PRECISION)
        store_tile(written_ptr, written, H * V, count, v0, C, V, BV)
        written = (written * decay_to(last - decay)[:, None]).to(dtype)
        state = state * decay_to(last)
        state += tl.dot(tl.trans(k), written, input_precision=PRECISION)
        k_ptr += C * k_row
        w_ptr += C * H * K
        u_ptr += C * H * V
        written_ptr += C * H * V
        decay_ptr += C * H
        states_ptr += H * K * V
    if HAS_FINAL:
        store_tile(final_ptr + head * K * V, state, V, K, v0, BK, V, BV)


@triton.jit(do_not_specialize=["T"])
def output_kernel(
    q_ptr,
    k_ptr,
    written_ptr,
    states_ptr,
    decay_ptr,
    o_ptr,
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
    """Of one chunk, BV columns: o = scale ((e^decay q) state + P written), P = q k^T decayed."""
    chunk, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    v0 = tl.program_id(1) * BV
    first, count = chunk_place(chunk, places_ptr, T, C, VARLEN)
    if count <= 0:
        return
    token = first * H + h
    q_ptr += first * q_row + h * K
    k_ptr += first * k_row + h * K
    states_ptr += (chunk * H + h) * K * V
    o = tl.zeros([C, BV], tl.float32)
    P = tl.zeros([C, C], tl.float32)
    for k0 in range(0, K, BK):
        q = load_tile(q_ptr, q_row, count, k0, C, K, BK)
        k = load_tile(k_ptr, k_row, count, k0, C, K, BK)
        state = load_tile(states_ptr + k0 * V, V, K - k0, v0, BK, V, BV)
        o += tl.dot(q, state, input_precision=PRECISION)
        P += tl.dot(q, tl.trans(k), input_precision=PRECISION)
    decay, _ = load_decay(decay_ptr + token, H, count, C)
    P = (P * decay_between(decay, C)).to(q_ptr.dtype.element_ty)
    written = load_tile(written_ptr + token * V, H * V, count, v0, C, V, BV)
    o = o * decay_to(decay)[:, None] + tl.dot(P, written, input_precision=PRECISION)
    store_tile(o_ptr + token * V, o * scale, H * V, count, v0, C, V, BV)
