# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Triton kernels of the forward pass; notation as in README.md."""

import triton
import triton.language as tl

from forgetmenot_kernels.gated_delta_rule.triton_tiles import (
    chunk_place,
    load_tile,
    store_tile,
    unit_lower_inverse,
)
from forgetmenot_kernels.wkv7.triton_tiles import (
    earlier,
    first_round,
    later,
    load_float,
    load_log_decay,
    meeting,
)


@triton.jit(do_not_specialize=["T", "H"])
def prepare_kernel(
    r_ptr, w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, query_ptr, W_ptr, U_ptr, b_out_ptr, k_out_ptr,
    decay_ptr, rb_ptr, rk_ptr, X_ptr, ak_ptr, places_ptr, T, H, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VARLEN: tl.constexpr,
    PRECISION: tl.constexpr, LEAF: tl.constexpr,
):  # fmt: skip
    """Of one chunk: all that needs no state."""
    chunk, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    first, count = chunk_place(chunk, places_ptr, T, C, VARLEN)
    if count <= 0:
        return
    token = first * H + h
    keys, t = token * K, tl.arange(0, C)
    ab, ak = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    rb, rk = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    same = t[:, None] == t[None, :]
    for k0 in range(0, K, BK):
        r = load_float(r_ptr + keys, H * K, count, k0, C, K, BK)
        w = load_log_decay(w_ptr + keys, H * K, count, k0, C, K, BK)
        k = load_float(k_ptr + keys, H * K, count, k0, C, K, BK)
        a = load_float(a_ptr + keys, H * K, count, k0, C, K, BK)
        b = load_float(b_ptr + keys, H * K, count, k0, C, K, BK)
        rb += tl.where(same, tl.sum(r * b, 1)[:, None], 0.0)
        rk += tl.where(same, tl.sum(r * k, 1)[:, None], 0.0)
        r = r * tl.exp(w)
        first_met = first_round(w, C, LEAF)
        for number in range(first_met, 6):
            pair, to_row, to_column = meeting(number, first_met, C, LEAF, False)
            row = tl.exp(tl.dot(to_row, w, input_precision=PRECISION))
            column = tl.exp(tl.dot(to_column, w, input_precision=PRECISION))
            b_T, k_T = tl.trans(b * column), tl.trans(k * column)
            ab += tl.where(pair, tl.dot(a * row, b_T, input_precision=PRECISION), 0.0)
            ak += tl.where(pair, tl.dot(a * row, k_T, input_precision=PRECISION), 0.0)
            rb += tl.where(pair, tl.dot(r * row, b_T, input_precision=PRECISION), 0.0)
            rk += tl.where(pair, tl.dot(r * row, k_T, input_precision=PRECISION), 0.0)
    store_tile(rb_ptr + token * C, rb, H * C, count, 0, C, C, C)
    store_tile(rk_ptr + token * C, rk, H * C, count, 0, C, C, C)
    X = unit_lower_inverse(-ab, C, PRECISION)
    store_tile(X_ptr + token * C, X, H * C, count, 0, C, C, C)
    store_tile(ak_ptr + token * C, ak, H * C, count, 0, C, C, C)
    for v0 in range(0, V, BV):
        v = load_float(v_ptr + token * V, H * V, count, v0, C, V, BV)
        U = tl.dot(X, tl.dot(ak, v, input_precision=PRECISION), input_precision=PRECISION)
        store_tile(U_ptr + token * V, U, H * V, count, v0, C, V, BV)
    for k0 in range(0, K, BK):
        w = load_log_decay(w_ptr + keys, H * K, count, k0, C, K, BK)
        column = k0 + tl.arange(0, BK)
        decay = tl.exp(tl.sum(w, 0))
        tl.store(decay_ptr + (chunk * H + h) * K + column, decay, mask=column < K)
        before = tl.exp(tl.dot(earlier(C), w, input_precision=PRECISION))
        after = tl.exp(tl.dot(later(C), w, input_precision=PRECISION))
        r = load_float(r_ptr + keys, H * K, count, k0, C, K, BK) * tl.exp(w)
        store_tile(query_ptr + keys, r * before, H * K, count, k0, C, K, BK)
        a = load_float(a_ptr + keys, H * K, count, k0, C, K, BK)
        W = tl.dot(X, a * before, input_precision=PRECISION)
        store_tile(W_ptr + keys, W, H * K, count, k0, C, K, BK)
        k = load_float(k_ptr + keys, H * K, count, k0, C, K, BK)
        store_tile(k_out_ptr + keys, k * after, H * K, count, k0, C, K, BK)
        b = load_float(b_ptr + keys, H * K, count, k0, C, K, BK)
        store_tile(b_out_ptr + keys, b * after, H * K, count, k0, C, K, BK)


@triton.jit(do_not_specialize=["T", "H"])
def states_kernel(
    v_ptr, W_ptr, U_ptr, b_out_ptr, k_out_ptr, decay_ptr, initial_ptr, states_ptr, read_ptr,
    final_ptr, cu_ptr, chunk_start_ptr, T, H, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VARLEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Chunk after chunk, BV columns: each chunk's first state [K, V], and read = U + W state."""
    v0 = tl.program_id(1) * BV
    head = tl.program_id(0).to(tl.int64)
    n, h = head // H, head % H
    first, length = n * T, T
    chunk = n * ((T + C - 1) // C)
    if VARLEN:
        first = tl.load(cu_ptr + n)
        length = (tl.load(cu_ptr + n + 1) - first).to(tl.int32)
        chunk = tl.load(chunk_start_ptr + n)
    dtype = W_ptr.dtype.element_ty
    row = tl.arange(0, BK)
    places = head * K * V + v0 * K
    state = tl.trans(load_tile(initial_ptr + places, K, V - v0, 0, BV, K, BK))
    for start in range(0, length, C):
        count = length - start
        token, index = (first + start) * H + h, (chunk + start // C) * H + h
        store_tile(states_ptr + index * K * V, state, V, K, v0, BK, V, BV)
        W = load_tile(W_ptr + token * K, H * K, count, 0, C, K, BK)
        U = load_tile(U_ptr + token * V, H * V, count, v0, C, V, BV)
        read = U + tl.dot(W, state.to(dtype), input_precision=PRECISION)
        store_tile(read_ptr + token * V, read, H * V, count, v0, C, V, BV)
        decay = tl.load(decay_ptr + index * K + row, mask=row < K, other=0.0)
        v = load_tile(v_ptr + token * V, H * V, count, v0, C, V, BV)
        k_out = load_tile(k_out_ptr + token * K, H * K, count, 0, C, K, BK)
        b_out = load_tile(b_out_ptr + token * K, H * K, count, 0, C, K, BK)
        state = state * decay[:, None]
        state += tl.dot(tl.trans(k_out), v.to(dtype), input_precision=PRECISION)
        state += tl.dot(tl.trans(b_out), read.to(dtype), input_precision=PRECISION)
    store_tile(final_ptr + places, tl.trans(state), K, V - v0, 0, BV, K, BK)


@triton.jit(do_not_specialize=["T", "H"])
def output_kernel(
    v_ptr, query_ptr, rb_ptr, rk_ptr, states_ptr, read_ptr, o_ptr, places_ptr, T, H, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VARLEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Of one chunk, BV columns: o = query state + rb read + rk v."""
    chunk, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    v0 = tl.program_id(1) * BV
    first, count = chunk_place(chunk, places_ptr, T, C, VARLEN)
    if count <= 0:
        return
    token = first * H + h
    states_ptr += (chunk * H + h) * K * V
    o = tl.zeros([C, BV], tl.float32)
    for k0 in range(0, K, BK):
        query = load_tile(query_ptr + token * K, H * K, count, k0, C, K, BK)
        state = load_tile(states_ptr + k0 * V, V, K - k0, v0, BK, V, BV)
        o += tl.dot(query, state, input_precision=PRECISION)
    rb = load_tile(rb_ptr + token * C, H * C, count, 0, C, C, C)
    rk = load_tile(rk_ptr + token * C, H * C, count, 0, C, C, C)
    read = load_tile(read_ptr + token * V, H * V, count, v0, C, V, BV)
    v = load_tile(v_ptr + token * V, H * V, count, v0, C, V, BV).to(rk.dtype)
    o += tl.dot(rb, read, input_precision=PRECISION) + tl.dot(rk, v, input_precision=PRECISION)
    store_tile(o_ptr + token * V, o, H * V, count, v0, C, V, BV)
