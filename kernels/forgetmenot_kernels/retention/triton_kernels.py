# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Triton kernels of retention; notation as in README.md.

Tensors are [tokens, H, D], contiguous, all sequences one after another on the token axis. Products
with a state are in the state's dtype: float32 for float16 inputs, as sums may leave its range.
Transposed products are formed from loaded tiles (why: gated_delta_rule/triton_tiles.py).
"""

import triton
import triton.language as tl

from forgetmenot_kernels.gated_delta_rule.triton_tiles import (
    chunk_place,
    load_tile,
    store_tile,
)


@triton.jit
def _decays(log_decay_ptr, h, count, C: tl.constexpr):
    """exp(log_decay * n) for n tokens: from the chunk's start to the end of each token, from there
    to its end, and of the whole chunk; then the log_decay and these numbers of tokens.
    """
    log_decay = tl.load(log_decay_ptr + h).to(tl.float32)
    tokens = tl.maximum(tl.minimum(count, C), 0)
    t = tl.arange(0, C)
    before, after = t + 1, tl.maximum(tokens - 1 - t, 0)
    into, out = tl.exp(log_decay * before), tl.exp(log_decay * after)
    return into, out, tl.exp(log_decay * tokens), log_decay, before, after, tokens


@triton.jit
def _decay_between(log_decay, C: tl.constexpr, TRANSPOSED: tl.constexpr):
    """[C, C]: exp(log_decay * (i - j)) for i >= j, else 0, and i - j."""
    t = tl.arange(0, C)
    between = t[None, :] - t[:, None] if TRANSPOSED else t[:, None] - t[None, :]
    return tl.where(between >= 0, tl.exp(log_decay * tl.maximum(between, 0)), 0.0), between


@triton.jit(do_not_specialize=["T", "H"])
def states_kernel(
    x_ptr, y_ptr, log_decay_ptr, first_ptr, states_ptr, last_ptr, cu_ptr, chunk_start_ptr, scale,
    T, H, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VARLEN: tl.constexpr,
    REVERSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of the state, chunk after chunk: state = decay state + x^T (y decayed to the end).

    Stores the state that each chunk meets. REVERSE, for gradients: from the last chunk on, and y
    decayed to the chunk's start.
    """
    k0, v0 = tl.program_id(1) * BK, tl.program_id(2) * BV
    head = tl.program_id(0).to(tl.int64)
    n, h = head // H, head % H
    first, length = n * T, T
    chunks = (T + C - 1) // C
    chunk = n * chunks
    if VARLEN:
        first = tl.load(cu_ptr + n)
        length = (tl.load(cu_ptr + n + 1) - first).to(tl.int32)
        chunks = (length + C - 1) // C
        chunk = tl.load(chunk_start_ptr + n)
    state = load_tile(first_ptr + head * K * V + k0 * V, V, K - k0, v0, BK, V, BV).to(tl.float32)
    for i in range(0, chunks):
        c = chunks - 1 - i if REVERSE else i
        store_tile(
            states_ptr + ((chunk + c) * H + h) * K * V + k0 * V, state, V, K - k0, v0, BK, V, BV
        )
        count = length - c * C
        into, out, whole, _, _, _, _ = _decays(log_decay_ptr, h, count, C)
        token = (first + c * C) * H + h
        x = load_tile(x_ptr + token * K, H * K, count, k0, C, K, BK)
        y = load_tile(y_ptr + token * V, H * V, count, v0, C, V, BV)
        weight = (into if REVERSE else out) * scale
        y = y * weight[:, None]
        x_T, high = tl.trans(x), y.to(x.dtype)
        state = state * whole + tl.dot(x_T, high, input_precision=PRECISION)
        if x.dtype != tl.float32:
            # in two parts, so that the state does not have the inputs' rounding
            low = (y - high.to(tl.float32)).to(x.dtype)
            state += tl.dot(x_T, low, input_precision=PRECISION)
    store_tile(last_ptr + head * K * V + k0 * V, state, V, K - k0, v0, BK, V, BV)


@triton.jit(do_not_specialize=["T", "H"])
def output_kernel(
    q_ptr, k_ptr, v_ptr, log_decay_ptr, states_ptr, o_ptr, places_ptr, scale, T, H, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VARLEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Of one chunk, BV columns: o = scale ((q decayed) state + P v), P = q k^T decayed."""
    chunk, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    v0 = tl.program_id(1) * BV
    first, count = chunk_place(chunk, places_ptr, T, C, VARLEN)
    if count <= 0:
        return
    token = first * H + h
    states_ptr += (chunk * H + h) * K * V
    o, P = tl.zeros([C, BV], tl.float32), tl.zeros([C, C], tl.float32)
    for k0 in range(0, K, BK):
        q = load_tile(q_ptr + token * K, H * K, count, k0, C, K, BK)
        k = load_tile(k_ptr + token * K, H * K, count, k0, C, K, BK)
        state = load_tile(states_ptr + k0 * V, V, K - k0, v0, BK, V, BV)
        o += tl.dot(q.to(state.dtype), state, input_precision=PRECISION)
        P += tl.dot(q, tl.trans(k), input_precision=PRECISION)
    into, _, _, log_decay, _, _, _ = _decays(log_decay_ptr, h, count, C)
    decay, _ = _decay_between(log_decay, C, False)
    v = load_tile(v_ptr + token * V, H * V, count, v0, C, V, BV)
    o = o * into[:, None] + tl.dot((P * decay).to(v.dtype), v, input_precision=PRECISION)
    store_tile(o_ptr + token * V, o * scale, H * V, count, v0, C, V, BV)


@triton.jit(do_not_specialize=["T", "H"])
def gradient_kernel(
    q_ptr, k_ptr, v_ptr, log_decay_ptr, states_ptr, dstates_ptr, do_ptr, dq_ptr, dk_ptr, dv_ptr,
    dlog_decay_ptr, places_ptr, scale, T, H, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VARLEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Of one chunk: dq, dk, dv and its part of the gradient of log_decay.

    `dstates` are the gradients of the states after the chunks.
    """
    chunk, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    first, count = chunk_place(chunk, places_ptr, T, C, VARLEN)
    if count <= 0:
        tl.store(dlog_decay_ptr + chunk * H + h, 0.0)
        return
    into, out, whole, log_decay, before, after, tokens = _decays(log_decay_ptr, h, count, C)
    decay, between = _decay_between(log_decay, C, False)
    decay_T, _ = _decay_between(log_decay, C, True)
    token = first * H + h
    q_ptr += token * K
    k_ptr += token * K
    v_ptr += token * V
    do_ptr += token * V
    states_ptr += (chunk * H + h) * K * V
    dstates_ptr += (chunk * H + h) * K * V
    dtype = q_ptr.dtype.element_ty
    dP, dP_T = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    P, P_T = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    for v0 in range(0, V, BV):
        v = load_tile(v_ptr, H * V, count, v0, C, V, BV)
        do = load_tile(do_ptr, H * V, count, v0, C, V, BV)
        dP += tl.dot(do, tl.trans(v), input_precision=PRECISION)
        dP_T += tl.dot(v, tl.trans(do), input_precision=PRECISION)
    dP, dP_T = dP * decay * scale, (dP_T * decay_T * scale).to(dtype)
    dlog_decay = 0.0
    for k0 in range(0, K, BK):
        q = load_tile(q_ptr, H * K, count, k0, C, K, BK)
        k = load_tile(k_ptr, H * K, count, k0, C, K, BK)
        P += tl.dot(q, tl.trans(k), input_precision=PRECISION)
        P_T += tl.dot(k, tl.trans(q), input_precision=PRECISION)
        dq, dk = tl.zeros([C, BK], tl.float32), tl.zeros([C, BK], tl.float32)
        for v0 in range(0, V, BV):
            v = load_tile(v_ptr, H * V, count, v0, C, V, BV)
            do = load_tile(do_ptr, H * V, count, v0, C, V, BV)
            state = load_tile(states_ptr + k0 * V, V, K - k0, v0, BK, V, BV)
            dstate = load_tile(dstates_ptr + k0 * V, V, K - k0, v0, BK, V, BV)
            dq += tl.dot(do.to(state.dtype), tl.trans(state), input_precision=PRECISION)
            dk += tl.dot(v.to(state.dtype), tl.trans(dstate), input_precision=PRECISION)
            through = tl.sum(tl.sum(state.to(tl.float32) * dstate.to(tl.float32), 1), 0)
            dlog_decay += through * whole * tokens
        dq, dk = dq * (into * scale)[:, None], dk * out[:, None]
        dlog_decay += tl.sum(tl.sum(dq * q, 1) * before + tl.sum(dk * k, 1) * after, 0)
        dq += tl.dot(dP.to(dtype), k, input_precision=PRECISION)
        dk += tl.dot(dP_T, q, input_precision=PRECISION)
        store_tile(dq_ptr + token * K, dq, H * K, count, k0, C, K, BK)
        store_tile(dk_ptr + token * K, dk, H * K, count, k0, C, K, BK)
    dlog_decay += tl.sum(tl.sum(dP * P * between, 1), 0)
    tl.store(dlog_decay_ptr + chunk * H + h, dlog_decay)
    P_T = (P_T * decay_T * scale).to(dtype)
    for v0 in range(0, V, BV):
        dv = tl.zeros([C, BV], tl.float32)
        for k0 in range(0, K, BK):
            k = load_tile(k_ptr, H * K, count, k0, C, K, BK)
            dstate = load_tile(dstates_ptr + k0 * V, V, K - k0, v0, BK, V, BV)
            dv += tl.dot(k.to(dstate.dtype), dstate, input_precision=PRECISION)
        do = load_tile(do_ptr, H * V, count, v0, C, V, BV)
        dv = dv * out[:, None] + tl.dot(P_T, do, input_precision=PRECISION)
        store_tile(dv_ptr + token * V, dv, H * V, count, v0, C, V, BV)


@triton.jit
def step_kernel(
    q_ptr, k_ptr, v_ptr, log_decay_ptr, state_ptr, o_ptr, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """One token, BV columns of one head; the state changes in place."""
    head = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    q = tl.load(q_ptr + head * K + row, mask=row < K, other=0.0).to(tl.float32)
    k = tl.load(k_ptr + head * K + row, mask=row < K, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + head * V + column, mask=column < V, other=0.0).to(tl.float32)
    decay = tl.exp(tl.load(log_decay_ptr + head % H).to(tl.float32))
    places = state_ptr + head * K * V + row[:, None] * V + column[None, :]
    inside = (row < K)[:, None] & (column < V)[None, :]
    state = tl.load(places, mask=inside, other=0.0) * decay + k[:, None] * v[None, :]
    tl.store(places, state, mask=inside)
    o = tl.sum(state * q[:, None], 0) * scale
    tl.store(o_ptr + head * V + column, o.to(o_ptr.dtype.element_ty), mask=column < V)
