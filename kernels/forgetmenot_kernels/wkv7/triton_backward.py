# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Triton kernels of the backward pass; notation as in README.md, `dx` is the gradient of x.

Transposed products are formed from loaded tiles (why: gated_delta_rule/triton_tiles.py).
"""

import triton
import triton.language as tl

from forgetmenot_kernels.gated_delta_rule.triton_tiles import chunk_place, load_tile, store_tile
from forgetmenot_kernels.wkv7.triton_tiles import (
    earlier,
    first_round,
    later,
    load_float,
    load_log_decay,
    meeting,
)


@triton.jit(do_not_specialize=["T", "H"])
def dstates_kernel(
    do_ptr, query_ptr, W_ptr, b_out_ptr, rb_ptr, decay_ptr, dfinal_ptr, dstates_ptr, dread_ptr,
    dinitial_ptr, cu_ptr, chunk_start_ptr, T, H, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VARLEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Last chunk first, BV columns: dstate after each chunk, and dread of its tokens."""
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
    dstate = tl.trans(load_tile(dfinal_ptr + places, K, V - v0, 0, BV, K, BK))
    chunks = (length + C - 1) // C
    for i in range(0, chunks):
        c = chunks - 1 - i
        count = length - c * C
        token, index = (first + c * C) * H + h, (chunk + c) * H + h
        store_tile(dstates_ptr + index * K * V, dstate, V, K, v0, BK, V, BV)
        do = load_tile(do_ptr + token * V, H * V, count, v0, C, V, BV).to(dtype)
        rb = load_tile(rb_ptr + token * C, H * C, count, 0, C, C, C)
        b_out = load_tile(b_out_ptr + token * K, H * K, count, 0, C, K, BK)
        dread = tl.dot(tl.trans(rb), do, input_precision=PRECISION)
        dread += tl.dot(b_out, dstate.to(dtype), input_precision=PRECISION)
        store_tile(dread_ptr + token * V, dread, H * V, count, v0, C, V, BV)
        decay = tl.load(decay_ptr + index * K + row, mask=row < K, other=0.0)
        query = load_tile(query_ptr + token * K, H * K, count, 0, C, K, BK)
        W = load_tile(W_ptr + token * K, H * K, count, 0, C, K, BK)
        dstate = dstate * decay[:, None]
        dstate += tl.dot(tl.trans(query), do, input_precision=PRECISION)
        dstate += tl.dot(tl.trans(W), dread.to(dtype), input_precision=PRECISION)
    store_tile(dinitial_ptr + places, tl.trans(dstate), K, V - v0, 0, BV, K, BK)


@triton.jit(do_not_specialize=["T", "H"])
def products_gradient_kernel(
    v_ptr, do_ptr, read_ptr, dread_ptr, k_out_ptr, rk_ptr, X_ptr, ak_ptr, dstates_ptr, y_ptr,
    dab_ptr, dak_ptr, drb_ptr, drk_ptr, dv_ptr, places_ptr, T, H, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VARLEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Of one chunk: y = X^T dread, dv, and the gradients of the products of tokens."""
    chunk, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    first, count = chunk_place(chunk, places_ptr, T, C, VARLEN)
    if count <= 0:
        return
    token = first * H + h
    dtype = X_ptr.dtype.element_ty
    X = load_tile(X_ptr + token * C, H * C, count, 0, C, C, C)
    rk = load_tile(rk_ptr + token * C, H * C, count, 0, C, C, C)
    ak = load_tile(ak_ptr + token * C, H * C, count, 0, C, C, C)
    dab, dak = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    drb, drk = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    for v0 in range(0, V, BV):
        dread = load_tile(dread_ptr + token * V, H * V, count, v0, C, V, BV)
        y = tl.dot(tl.trans(X), dread, input_precision=PRECISION).to(dtype)
        store_tile(y_ptr + token * V, y, H * V, count, v0, C, V, BV)
        do = load_tile(do_ptr + token * V, H * V, count, v0, C, V, BV).to(dtype)
        dv = tl.dot(tl.trans(rk), do, input_precision=PRECISION)
        dv += tl.dot(tl.trans(ak), y, input_precision=PRECISION)
        for k0 in range(0, K, BK):
            k_out = load_tile(k_out_ptr + token * K, H * K, count, k0, C, K, BK)
            places = (chunk * H + h) * K * V + k0 * V
            dstate = load_tile(dstates_ptr + places, V, K - k0, v0, BK, V, BV)
            dv += tl.dot(k_out, dstate, input_precision=PRECISION)
        store_tile(dv_ptr + token * V, dv, H * V, count, v0, C, V, BV)
        read = tl.trans(load_tile(read_ptr + token * V, H * V, count, v0, C, V, BV))
        dab += tl.dot(y, read, input_precision=PRECISION)
        drb += tl.dot(do, read, input_precision=PRECISION)
        v = tl.trans(load_tile(v_ptr + token * V, H * V, count, v0, C, V, BV).to(dtype))
        dak += tl.dot(y, v, input_precision=PRECISION)
        drk += tl.dot(do, v, input_precision=PRECISION)
    store_tile(dab_ptr + token * C, dab, H * C, count, 0, C, C, C)
    store_tile(dak_ptr + token * C, dak, H * C, count, 0, C, C, C)
    store_tile(drb_ptr + token * C, drb, H * C, count, 0, C, C, C)
    store_tile(drk_ptr + token * C, drk, H * C, count, 0, C, C, C)


@triton.jit(do_not_specialize=["T", "H"])
def inputs_gradient_kernel(
    r_ptr, w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, do_ptr, read_ptr, y_ptr, states_ptr, dstates_ptr,
    dab_ptr, dak_ptr, drb_ptr, drk_ptr, dr_ptr, dw_ptr, dk_ptr, da_ptr, db_ptr, places_ptr,
    T, H, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VARLEN: tl.constexpr,
    PRECISION: tl.constexpr, LEAF: tl.constexpr,
):  # fmt: skip
    """Of one chunk, BK channels: the gradients of r, w, k, a and b."""
    chunk, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    k0 = tl.program_id(1) * BK
    first, count = chunk_place(chunk, places_ptr, T, C, VARLEN)
    if count <= 0:
        return
    token = first * H + h
    keys, t = token * K, tl.arange(0, C)
    da, dr = tl.zeros([C, BK], tl.float32), tl.zeros([C, BK], tl.float32)
    db, dk = tl.zeros([C, BK], tl.float32), tl.zeros([C, BK], tl.float32)
    through = tl.zeros([BK], tl.float32)
    for v0 in range(0, V, BV):
        places = (chunk * H + h) * K * V + k0 * V
        state = load_float(states_ptr + places, V, K - k0, v0, BK, V, BV)
        dstate = load_float(dstates_ptr + places, V, K - k0, v0, BK, V, BV)
        through += tl.sum(state * dstate, 1)
        state, dstate = tl.trans(state), tl.trans(dstate)
        y = load_float(y_ptr + token * V, H * V, count, v0, C, V, BV)
        da += tl.dot(y, state, input_precision=PRECISION)
        do = load_float(do_ptr + token * V, H * V, count, v0, C, V, BV)
        dr += tl.dot(do, state, input_precision=PRECISION)
        read = load_float(read_ptr + token * V, H * V, count, v0, C, V, BV)
        db += tl.dot(read, dstate, input_precision=PRECISION)
        v = load_float(v_ptr + token * V, H * V, count, v0, C, V, BV)
        dk += tl.dot(v, dstate, input_precision=PRECISION)
    w = load_log_decay(w_ptr + keys, H * K, count, k0, C, K, BK)
    r = load_float(r_ptr + keys, H * K, count, k0, C, K, BK) * tl.exp(w)
    k = load_float(k_ptr + keys, H * K, count, k0, C, K, BK)
    a = load_float(a_ptr + keys, H * K, count, k0, C, K, BK)
    b = load_float(b_ptr + keys, H * K, count, k0, C, K, BK)
    before = tl.exp(tl.dot(earlier(C), w, input_precision=PRECISION))
    after = tl.exp(tl.dot(later(C), w, input_precision=PRECISION))
    da, dr, db, dk = da * before, dr * before, db * after, dk * after
    dw = tl.dot(later(C), a * da + r * dr, input_precision=PRECISION)
    dw += tl.dot(earlier(C), b * db + k * dk, input_precision=PRECISION)
    dw += (through * tl.exp(tl.sum(w, 0)))[None, :]
    first_met = first_round(w, C, LEAF)
    for number in range(first_met, 6):
        pair, to_row, to_column = meeting(number, first_met, C, LEAF, False)
        row = tl.exp(tl.dot(to_row, w, input_precision=PRECISION))
        column = tl.exp(tl.dot(to_column, w, input_precision=PRECISION))
        dab = tl.where(pair, load_float(dab_ptr + token * C, H * C, count, 0, C, C, C), 0.0)
        dak = tl.where(pair, load_float(dak_ptr + token * C, H * C, count, 0, C, C, C), 0.0)
        drb = tl.where(pair, load_float(drb_ptr + token * C, H * C, count, 0, C, C, C), 0.0)
        drk = tl.where(pair, load_float(drk_ptr + token * C, H * C, count, 0, C, C, C), 0.0)
        da_met = tl.dot(dab, b * column, input_precision=PRECISION)
        da_met += tl.dot(dak, k * column, input_precision=PRECISION)
        dr_met = tl.dot(drb, b * column, input_precision=PRECISION)
        dr_met += tl.dot(drk, k * column, input_precision=PRECISION)
        db_met = tl.dot(tl.trans(dab), a * row, input_precision=PRECISION)
        db_met += tl.dot(tl.trans(drb), r * row, input_precision=PRECISION)
        dk_met = tl.dot(tl.trans(dak), a * row, input_precision=PRECISION)
        dk_met += tl.dot(tl.trans(drk), r * row, input_precision=PRECISION)
        da_met, dr_met = da_met * row, dr_met * row
        db_met, dk_met = db_met * column, dk_met * column
        _, to_row, to_column = meeting(number, first_met, C, LEAF, True)
        dw += tl.dot(to_row, a * da_met + r * dr_met, input_precision=PRECISION)
        dw += tl.dot(to_column, b * db_met + k * dk_met, input_precision=PRECISION)
        da += da_met
        dr += dr_met
        db += db_met
        dk += dk_met
    dw += r * dr
    dr = dr * tl.exp(w)
    # a token's own r reads what it has just written
    r = load_float(r_ptr + keys, H * K, count, k0, C, K, BK)
    own = token * C + t * (H * C + 1)
    drb_own = tl.load(drb_ptr + own, mask=t < count, other=0.0).to(tl.float32)[:, None]
    drk_own = tl.load(drk_ptr + own, mask=t < count, other=0.0).to(tl.float32)[:, None]
    dr += drb_own * b + drk_own * k
    store_tile(dr_ptr + keys, dr, H * K, count, k0, C, K, BK)
    store_tile(dw_ptr + keys, dw, H * K, count, k0, C, K, BK)
    store_tile(da_ptr + keys, da, H * K, count, k0, C, K, BK)
    store_tile(db_ptr + keys, db + drb_own * r, H * K, count, k0, C, K, BK)
    store_tile(dk_ptr + keys, dk + drk_own * r, H * K, count, k0, C, K, BK)
