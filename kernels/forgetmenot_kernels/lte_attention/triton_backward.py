# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Backward kernels of LTE attention; none of them uses atomics, so gradients repeat bit by bit.

`query_kernel` (dq) walks like the forward. It also leaves each query's log-sum-exp (base 2) and
delta side by side (`stats` [B, G, T, 2]) for the other two, which load them together. `kept_kernel`
owns a tile of the list of all kept columns and a share of the queries that see them outside the
window; it leaves float32 partial sums of dk and dv. `window_kernel` owns a tile of tokens, begins
with the partial sums of its kept columns, in a fixed order, walks over the queries that see them in
the window and writes dk and dv. Programs are numbered through the heads first, long walks before
short ones, so that the last to run are short.

With p = exp(s - lse), delta = <o, do> - dlse:  ds = p (do v^T - delta), dq = scale ds k,
dk = scale ds^T q, dv = p^T do. Key-major tiles are computed transposed, so that no product takes
the transpose of another product.
"""

import triton
import triton.language as tl

from forgetmenot_kernels.lte_attention.triton_forward import (
    kept_tiles,
    load_rows,
    rows_of,
    window_tiles,
    within,
)


@triton.jit(do_not_specialize=["T", "window", "segment", "segments"])
def query_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, do_ptr, lse_ptr, dlse_ptr, stats_ptr, dq_ptr, begin_ptr,
    column_ptr, until_ptr, count_ptr, least_ptr, rank_ptr,
    scale, scale_log2, T, window, segment, segments,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
    HAS_KEPT: tl.constexpr, PACKED: tl.constexpr, HAS_DLSE: tl.constexpr, PRECISION: tl.constexpr,
    SHORT: tl.constexpr,
):  # fmt: skip
    """One program a tile of queries and head: their stats and dq."""
    tiles_T = tl.cdiv(T, BM)
    pid = tl.program_id(0)
    heads = tl.num_programs(0) // tiles_T
    i_first = (tiles_T - 1 - pid // heads) * BM
    i_last = tl.minimum(i_first + BM, T) - 1
    head_q = pid % heads
    batch = head_q // (H * G)
    head = batch * H + head_q % (H * G) // G
    row = batch.to(tl.int64) * T
    k_ptr += (row * H + head % H) * D
    v_ptr += (row * H + head % H) * D
    at_q = ((row + i_first) * H * G + head_q % (H * G)) * D
    at_lse = head_q.to(tl.int64) * T

    i = i_first + tl.arange(0, BM)
    near_i = tl.minimum(i, T - 1) - i_first
    span = window + tl.zeros([BM], tl.int32)
    begin_first = 0
    begin_last = 0
    if PACKED:
        begin = tl.load(begin_ptr + i_first + near_i)
        span = tl.minimum(span, i - begin + 1)
        begin_first = tl.load(begin_ptr + i_first)
        begin_last = tl.load(begin_ptr + i_last)
    q = load_rows(q_ptr + at_q, near_i, H * G * D, D, BLOCK_D)
    do = load_rows(do_ptr + at_q, near_i, H * G * D, D, BLOCK_D)
    o = load_rows(o_ptr + at_q, near_i, H * G * D, D, BLOCK_D)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    if HAS_DLSE:
        delta -= tl.load(dlse_ptr + at_lse + i_first + near_i)
    lse_log2 = tl.load(lse_ptr + at_lse + i_first + near_i) * 1.4426950408889634
    at_stats = (at_lse + i)[:, None] * 2 + tl.arange(0, 2)[None, :]
    tl.store(stats_ptr + at_stats, tl.join(lse_log2, delta), mask=(i < T)[:, None])
    dq = tl.zeros([BM, BLOCK_D], tl.float32)
    n = tl.arange(0, BN)

    if HAS_KEPT:
        at, first, past, whole = kept_tiles(
            count_ptr, least_ptr, rank_ptr, head, i_first, i_last, begin_first, T, window,
            segment, segments, BN,
        )  # fmt: skip
        column_ptr += at
        until_ptr += at
        for tile in range(0, tl.cdiv(past - first, BN)):
            place = first + tile * BN + n
            j = tl.load(column_ptr + place, mask=place < past, other=0).to(tl.int64)
            k = load_rows(k_ptr, j, H * D, D, BLOCK_D)
            v = load_rows(v_ptr, j, H * D, D, BLOCK_D)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            p = tl.exp2(scores * scale_log2 - lse_log2[:, None])
            if tile >= whole:
                # loaded again, so that tiles seen whole hold no registers for the mask
                start = tl.load(column_ptr + place, mask=place < past, other=0) + window
                until = tl.load(until_ptr + place, mask=place < past, other=0)
                seen = within(i[:, None], start[None, :], tl.maximum(until - start, 0)[None, :])
                p = tl.where(seen, p, 0.0)
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            ds = p * (dp - delta[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)

    start, tiles, whole_from, whole_to = window_tiles(
        i_first, i_last, begin_first, begin_last, window, BN
    )
    near = rows_of(BN, T, SHORT)
    for tile in range(0, tiles):
        j_nominal = start + tile * BN
        j_first = tl.maximum(tl.minimum(j_nominal, T - BN), 0)
        at_j = j_first.to(tl.int64) * (H * D)
        k = load_rows(k_ptr + at_j, near, H * D, D, BLOCK_D)
        v = load_rows(v_ptr + at_j, near, H * D, D, BLOCK_D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        p = tl.exp2(scores * scale_log2 - lse_log2[:, None])
        if (tile < whole_from) | (tile >= whole_to):
            j = j_first + n
            j = tl.where(j >= j_nominal, j, 1 << 30)  # those of the tile before: out of sight
            p = tl.where(within(i[:, None], j[None, :], span[:, None]), p, 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)

    d = tl.arange(0, BLOCK_D)
    at_dq = (i - i_first)[:, None] * (H * G * D) + d[None, :]
    dq = (dq * scale).to(dq_ptr.dtype.element_ty)
    tl.store(dq_ptr + at_q + at_dq, dq, mask=(i[:, None] < T) & (d[None, :] < D))


@triton.jit
def _walk_queries(
    q_ptr, do_ptr, stats_ptr, k, v, dk, dv, from_j, span_j,
    first, whole_from, whole_to, tiles, turn, past_turn, batch, head, scale_log2, T,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BM: tl.constexpr, PRECISION: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    """Adds dk (unscaled) and dv of a tile of columns over turns turn..past_turn.

    A turn is a tile of BM queries of one query head: `tiles` tiles from query `first` on, for each
    of the G heads. Query i sees column n where from_j[n] <= i < from_j[n] + span_j[n]; all queries
    in whole_from..whole_to see all columns.
    """
    row = batch.to(tl.int64) * T
    # the last tile begins earlier rather than end beyond T: its rows need no bound of their own
    near = rows_of(BM, T, SHORT)
    q_ptr += (row * H * G + (head % H) * G) * D
    do_ptr += (row * H * G + (head % H) * G) * D
    stats_ptr += (batch * H * G + (head % H) * G).to(tl.int64) * (2 * T)
    at_stats = near[:, None] * 2 + tl.arange(0, 2)[None, :]
    for t in range(turn, past_turn):
        if G == 1:
            i_nominal = first + t * BM
            i_first = tl.maximum(tl.minimum(i_nominal, T - BM), 0)
            at_q = i_first.to(tl.int64) * (H * D)
            at_i = i_first * 2
        else:
            i_nominal = first + t % tiles * BM
            i_first = tl.maximum(tl.minimum(i_nominal, T - BM), 0)
            at_q = (i_first.to(tl.int64) * (H * G) + t // tiles) * D
            at_i = ((t // tiles).to(tl.int64) * T + i_first) * 2
        q = load_rows(q_ptr + at_q, near, H * G * D, D, BLOCK_D)
        lse_log2, delta = tl.split(tl.load(stats_ptr + at_i + at_stats))
        do = load_rows(do_ptr + at_q, near, H * G * D, D, BLOCK_D)
        scores_t = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        p_t = tl.exp2(scores_t * scale_log2 - lse_log2[None, :])
        if (i_nominal < whole_from) | (i_nominal + BM > whole_to):
            i = i_first + tl.arange(0, BM)
            i = tl.where(i >= i_nominal, i, -1)  # those of the tile before: see nothing
            p_t = tl.where(within(i[None, :], from_j[:, None], span_j[:, None]), p_t, 0.0)
        dv = tl.dot(p_t.to(do.dtype), do, dv, input_precision=PRECISION)
        # the product begins with -delta, which is faster than a difference after it (README)
        less_t = tl.broadcast_to(-delta[None, :], p_t.shape)
        ds_t = p_t * tl.dot(v, tl.trans(do), less_t, input_precision=PRECISION)
        dk = tl.dot(ds_t.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def _shares(count, tiles_T, wanted, BN: tl.constexpr):
    """Over how many programs the queries of a tile of kept columns are spread: about `wanted`
    programs a head in all, and no more than there is room for.
    """
    used = tl.maximum(tl.cdiv(count, BN), 1)
    return tl.maximum(tl.minimum(tl.cdiv(wanted, used), tiles_T // used), 1)


@triton.jit(do_not_specialize=["T", "window", "segments", "wanted"])
def kept_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, stats_ptr, dk_part_ptr, dv_part_ptr,
    column_ptr, until_ptr, count_ptr,
    scale_log2, T, window, segments, wanted,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    """One program a tile of kept columns and share of its queries: partial sums of dk and dv."""
    tiles_T = tl.cdiv(T, BN)
    pid = tl.program_id(0)
    heads = tl.num_programs(0) // tiles_T
    program = pid // heads
    head = pid % heads
    batch = head // H
    which = head * (segments + 1) + segments  # the list of all kept columns
    count = tl.load(count_ptr + which)
    shares = _shares(count, tiles_T, wanted, BN)
    first_place = program // shares * BN
    if first_place < count:
        n = tl.arange(0, BN)
        filled = first_place + n < count
        at = which.to(tl.int64) * T + first_place
        j = tl.load(column_ptr + at + n, mask=filled, other=0)
        until = tl.load(until_ptr + at + n, mask=filled, other=0)
        row = batch.to(tl.int64) * T
        k = load_rows(k_ptr + (row * H + head % H) * D, j.to(tl.int64), H * D, D, BLOCK_D)
        v = load_rows(v_ptr + (row * H + head % H) * D, j.to(tl.int64), H * D, D, BLOCK_D)
        first = tl.min(tl.where(filled, j, T), 0) + window
        past = tl.max(until, 0)
        whole_from = tl.max(tl.where(filled, j, T), 0) + window  # never, in a tile not filled
        whole_to = tl.min(until, 0)
        tiles = tl.cdiv(past - first, BM)
        turns = tl.cdiv(tiles * G, shares)
        turn = program % shares * turns
        dk = tl.zeros([BN, BLOCK_D], tl.float32)
        dv = tl.zeros([BN, BLOCK_D], tl.float32)
        dk, dv = _walk_queries(
            q_ptr, do_ptr, stats_ptr, k, v, dk, dv,
            j + window, tl.maximum(until - j - window, 0),
            first, whole_from, whole_to, tiles, turn, tl.minimum(turn + turns, tiles * G),
            batch, head, scale_log2, T, H, G, D, BLOCK_D, BM, PRECISION, SHORT,
        )  # fmt: skip
        d = tl.arange(0, BLOCK_D)
        at_part = (head.to(tl.int64) * tiles_T + program) * (BN * D)
        at_part += n[:, None] * D + d[None, :]
        tl.store(dk_part_ptr + at_part, dk, mask=d[None, :] < D)
        tl.store(dv_part_ptr + at_part, dv, mask=d[None, :] < D)


@triton.jit(do_not_specialize=["T", "window", "segments", "wanted"])
def window_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, stats_ptr, dk_ptr, dv_ptr, dk_part_ptr, dv_part_ptr,
    end_ptr, count_ptr, rank_ptr,
    scale, scale_log2, T, window, segments, wanted,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, KEPT_BN: tl.constexpr,
    HAS_KEPT: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    """One program a tile of tokens: their dk and dv, partial sums of kept columns included."""
    tiles_T = tl.cdiv(T, BN)
    pid = tl.program_id(0)
    heads = tl.num_programs(0) // tiles_T
    j_first = pid // heads * BN
    j_last = tl.minimum(j_first + BN, T) - 1
    head = pid % heads
    batch = head // H
    n = tl.arange(0, BN)
    j = j_first + n
    inside = j < T
    near = tl.minimum(j, T - 1) - j_first
    at = ((batch.to(tl.int64) * T + j_first) * H + head % H) * D
    k = load_rows(k_ptr + at, near, H * D, D, BLOCK_D)
    v = load_rows(v_ptr + at, near, H * D, D, BLOCK_D)
    until = tl.minimum(j + window, T)
    past = tl.minimum(j_last + window, T)
    whole_to = tl.minimum(j_first + window, T)
    if PACKED:
        until = tl.minimum(until, tl.load(end_ptr + j_first + near))
        past = tl.minimum(past, tl.load(end_ptr + j_last))
        whole_to = tl.minimum(whole_to, tl.load(end_ptr + j_first))
    tiles = tl.cdiv(past - j_first, BM)
    d = tl.arange(0, BLOCK_D)
    dk = tl.zeros([BN, BLOCK_D], tl.float32)
    dv = tl.zeros([BN, BLOCK_D], tl.float32)
    if HAS_KEPT:
        rank_ptr += head.to(tl.int64) * T
        count = tl.load(count_ptr + head * (segments + 1) + segments)
        shares = _shares(count, tl.cdiv(T, KEPT_BN), wanted, KEPT_BN)
        place = tl.load(rank_ptr + j, mask=inside, other=0) - 1
        before = tl.load(rank_ptr + j - 1, mask=inside & (j > 0), other=0)
        kept = (inside & (place == before))[:, None] & (d[None, :] < D)
        place = tl.maximum(place, 0)
        tile_at = head.to(tl.int64) * tl.cdiv(T, KEPT_BN) + place // KEPT_BN * shares
        for share in range(0, shares):
            row = (tile_at + share) * KEPT_BN + place % KEPT_BN
            at_part = row[:, None] * D + d[None, :]
            dk += tl.load(dk_part_ptr + at_part, mask=kept, other=0.0)
            dv += tl.load(dv_part_ptr + at_part, mask=kept, other=0.0)
    dk, dv = _walk_queries(
        q_ptr, do_ptr, stats_ptr, k, v, dk, dv, j, tl.maximum(until - j, 0),
        j_first, j_last, whole_to, tiles, 0, tiles * G,
        batch, head, scale_log2, T, H, G, D, BLOCK_D, BM, PRECISION, SHORT,
    )  # fmt: skip
    at_out = at + n[:, None] * (H * D) + d[None, :]
    stored = inside[:, None] & (d[None, :] < D)
    tl.store(dk_ptr + at_out, (dk * scale).to(dk_ptr.dtype.element_ty), mask=stored)
    tl.store(dv_ptr + at_out, dv.to(dv_ptr.dtype.element_ty), mask=stored)
