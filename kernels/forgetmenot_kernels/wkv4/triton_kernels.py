# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Triton kernels of RWKV-4's WKV; notation as in README.md.

A program works on BD channels. Tensors are [tokens, D], all sequences one after another; states
are three float32 vectors [D] with a given distance, of sums a, b held as a e^p and b e^p.
"""

import triton
import triton.language as tl

from forgetmenot_kernels.gated_delta_rule.triton_tiles import chunk_place


@triton.jit
def _load_state(ptr, distance, d, D):
    """Three vectors of BD channels; the third is the exponent."""
    inside = d < D
    a = tl.load(ptr + d, mask=inside, other=0.0)
    ptr += distance
    b = tl.load(ptr + d, mask=inside, other=0.0)
    ptr += distance
    return a, b, tl.load(ptr + d, mask=inside, other=0.0)


@triton.jit
def _store_state(ptr, distance, d, D, a, b, p):
    inside = d < D
    tl.store(ptr + d, a, mask=inside)
    ptr += distance
    tl.store(ptr + d, b, mask=inside)
    ptr += distance
    tl.store(ptr + d, p, mask=inside)


@triton.jit
def _join(a, b, p, a_new, b_new, p_new):
    """The sum of two pairs of sums, with the larger exponent."""
    top = tl.maximum(p, p_new)
    old, new = tl.exp(p - top), tl.exp(p_new - top)
    return old * a + new * a_new, old * b + new * b_new, top


@triton.jit
def _read(a, b, p, k, v, bonus):
    """A token's output, its weight over its denominator m, m, and the exponent of both."""
    top = tl.maximum(p, bonus + k)
    old, new = tl.exp(p - top), tl.exp(bonus + k - top)
    m = old * b + new
    return (old * a + new * v) / m, new, m, top


@triton.jit
def _row(ptr, token, d, D):
    return tl.load(ptr + token * D + d, mask=d < D, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["T"])
def summary_kernel(
    k_ptr, v_ptr, decay_ptr, states_ptr, places_ptr, distance, T, D,
    C: tl.constexpr, BD: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to the state."""
    chunk = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    first, count = chunk_place(chunk, places_ptr, T, C, VARLEN)
    decay = _row(decay_ptr, 0, d, D)
    a, b, p = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    p += -1e30
    for token in range(first, first + tl.minimum(count, C)):
        k, v = _row(k_ptr, token, d, D), _row(v_ptr, token, d, D)
        a, b, p = _join(a, b, p - decay, v, 1.0, k)
    _store_state(states_ptr + chunk * D, distance, d, D, a, b, p)


@triton.jit(do_not_specialize=["T"])
def carry_kernel(
    states_ptr, decay_ptr, initial_ptr, final_ptr, cu_ptr, chunk_start_ptr, distance,
    distance_of_states, T, D,
    C: tl.constexpr, BD: tl.constexpr, VARLEN: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Chunk after chunk (REVERSE: last first) of a sequence: each chunk's own sums are replaced by
    those of all before it.
    """
    n = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    chunks = (T + C - 1) // C
    start = n * chunks
    length = T
    if VARLEN:
        length = (tl.load(cu_ptr + n + 1) - tl.load(cu_ptr + n)).to(tl.int32)
        chunks = (length + C - 1) // C
        start = tl.load(chunk_start_ptr + n)
    decay = _row(decay_ptr, 0, d, D)
    a, b, p = _load_state(initial_ptr + n * D, distance_of_states, d, D)
    for i in range(0, chunks):
        c = chunks - 1 - i if REVERSE else i
        ptr = states_ptr + (start + c) * D
        a_new, b_new, p_new = _load_state(ptr, distance, d, D)
        _store_state(ptr, distance, d, D, a, b, p)
        tokens = tl.minimum(length - c * C, C).to(tl.float32)
        a, b, p = _join(a, b, p - tokens * decay, a_new, b_new, p_new)
    _store_state(final_ptr + n * D, distance_of_states, d, D, a, b, p)


@triton.jit(do_not_specialize=["T"])
def output_kernel(
    k_ptr, v_ptr, decay_ptr, bonus_ptr, states_ptr, wkv_ptr, places_ptr, distance, T, D,
    C: tl.constexpr, BD: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """The outputs of a chunk, from the state at its start."""
    chunk = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    first, count = chunk_place(chunk, places_ptr, T, C, VARLEN)
    decay, bonus = _row(decay_ptr, 0, d, D), _row(bonus_ptr, 0, d, D)
    a, b, p = _load_state(states_ptr + chunk * D, distance, d, D)
    for token in range(first, first + tl.minimum(count, C)):
        k, v = _row(k_ptr, token, d, D), _row(v_ptr, token, d, D)
        wkv, _, _, _ = _read(a, b, p, k, v, bonus)
        tl.store(wkv_ptr + token * D + d, wkv.to(wkv_ptr.dtype.element_ty), mask=d < D)
        a, b, p = _join(a, b, p - decay, v, 1.0, k)


@triton.jit(do_not_specialize=["T"])
def replay_kernel(
    k_ptr, v_ptr, dwkv_ptr, decay_ptr, bonus_ptr, states_ptr, replay_ptr, dstates_ptr, places_ptr,
    distance, distance_of_tokens, T, D,
    C: tl.constexpr, BD: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """The state before each token, and what a chunk's outputs add to the gradient of its first
    state.
    """
    chunk = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    first, count = chunk_place(chunk, places_ptr, T, C, VARLEN)
    decay, bonus = _row(decay_ptr, 0, d, D), _row(bonus_ptr, 0, d, D)
    a, b, p = _load_state(states_ptr + chunk * D, distance, d, D)
    da, db, dp = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    dp += -1e30
    since = tl.zeros([BD], tl.float32)
    for token in range(first, first + tl.minimum(count, C)):
        k, v = _row(k_ptr, token, d, D), _row(v_ptr, token, d, D)
        _store_state(replay_ptr + token * D, distance_of_tokens, d, D, a, b, p)
        wkv, _, m, top = _read(a, b, p, k, v, bonus)
        slope = _row(dwkv_ptr, token, d, D) / m
        da, db, dp = _join(da, db, dp, slope, -slope * wkv, -since - top)
        a, b, p = _join(a, b, p - decay, v, 1.0, k)
        since += decay
    _store_state(dstates_ptr + chunk * D, distance, d, D, da, db, dp)


@triton.jit(do_not_specialize=["T"])
def gradient_kernel(
    k_ptr, v_ptr, dwkv_ptr, decay_ptr, bonus_ptr, replay_ptr, dstates_ptr, dk_ptr, dv_ptr,
    ddecay_ptr, dbonus_ptr, places_ptr, distance, distance_of_tokens, T, D,
    C: tl.constexpr, BD: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """Dk and dv of a chunk, last token first, and its part of the gradients of decay and bonus."""
    chunk = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    first, count = chunk_place(chunk, places_ptr, T, C, VARLEN)
    count = tl.minimum(count, C)
    decay, bonus = _row(decay_ptr, 0, d, D), _row(bonus_ptr, 0, d, D)
    # the gradient of the state after the token
    da, db, dp = _load_state(dstates_ptr + chunk * D, distance, d, D)
    ddecay, dbonus = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    for i in range(0, count):
        token = first + count - 1 - i
        k, v = _row(k_ptr, token, d, D), _row(v_ptr, token, d, D)
        a, b, p = _load_state(replay_ptr + token * D, distance_of_tokens, d, D)
        wkv, weight, m, top = _read(a, b, p, k, v, bonus)
        slope = _row(dwkv_ptr, token, d, D) / m
        kept = tl.exp(k + dp)
        dv = weight * slope + kept * da
        through_bonus = weight * slope * (v - wkv)
        dk = through_bonus + kept * (da * v + db)
        tl.store(dv_ptr + token * D + d, dv.to(dv_ptr.dtype.element_ty), mask=d < D)
        tl.store(dk_ptr + token * D + d, dk.to(dk_ptr.dtype.element_ty), mask=d < D)
        dbonus += through_bonus
        ddecay -= tl.exp(p - decay + dp) * (a * da + b * db)
        da, db, dp = _join(da, db, dp - decay, slope, -slope * wkv, -top)
    tl.store(ddecay_ptr + chunk * D + d, ddecay, mask=d < D)
    tl.store(dbonus_ptr + chunk * D + d, dbonus, mask=d < D)


@triton.jit
def step_kernel(
    k_ptr, v_ptr, decay_ptr, bonus_ptr, a_ptr, b_ptr, p_ptr, wkv_ptr, D, BD: tl.constexpr
):  # fmt: skip
    """One token of one sequence, the state changed in place."""
    n = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    decay, bonus = _row(decay_ptr, 0, d, D), _row(bonus_ptr, 0, d, D)
    k, v = _row(k_ptr, n, d, D), _row(v_ptr, n, d, D)
    a, b, p = _row(a_ptr, n, d, D), _row(b_ptr, n, d, D), _row(p_ptr, n, d, D)
    wkv, _, _, _ = _read(a, b, p, k, v, bonus)
    tl.store(wkv_ptr + n * D + d, wkv.to(wkv_ptr.dtype.element_ty), mask=d < D)
    a, b, p = _join(a, b, p - decay, v, 1.0, k)
    tl.store(a_ptr + n * D + d, a, mask=d < D)
    tl.store(b_ptr + n * D + d, b, mask=d < D)
    tl.store(p_ptr + n * D + d, p, mask=d < D)
