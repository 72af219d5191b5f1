# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Forward kernel of LTE attention, and the walk over columns that it shares with the backward.

A program owns BM consecutive queries i of one head. It walks first over the tiles of its segment's
list of kept columns (rows gathered by index), then over those of the window; only tiles that some
of the queries do not fully see are masked.
"""

import triton
import triton.language as tl


@triton.jit
def _rank(rank_ptr, t):
    """Number of kept columns among tokens 0..t; none before the first."""
    return tl.load(rank_ptr + tl.maximum(t, 0), mask=t >= 0, other=0)


@triton.jit
def kept_tiles(
    kept_count_ptr, kept_least_ptr, rank_ptr,
    head, i_first, i_last, begin, T, window, segment, segments, BN: tl.constexpr,
):  # fmt: skip
    """Where the queries i_first..i_last find their kept columns.

    Returns the offset of their list, its first and its last + 1 place in use, and the number of
    tiles from there on that all of the queries see whole.
    """
    part = i_first // segment
    size = tl.load(kept_count_ptr + head * (segments + 1) + part)
    least = tl.load(kept_least_ptr + head * (segments + 1) + part)
    rank_ptr += head.to(tl.int64) * T
    # whatever leaves the window during the segment is listed, so places follow from ranks
    newest = _rank(rank_ptr, tl.minimum((part + 1) * segment, T) - 1 - window)
    past = size - (newest - _rank(rank_ptr, i_last - window))
    first = tl.maximum(size - (newest - _rank(rank_ptr, begin - 1)), 0)
    old = size - (newest - _rank(rank_ptr, i_first - window))
    whole = tl.where(least > i_last, tl.maximum(old - first, 0) // BN, 0)
    return (head.to(tl.int64) * (segments + 1) + part) * T, first, past, whole


@triton.jit
def window_tiles(i_first, i_last, begin_first, begin_last, window, BN: tl.constexpr):
    """First column that query i_first sees in its window, tiles from there on to i_last, and the
    range of those tiles that all queries see whole.
    """
    start = tl.maximum(begin_first, i_first - window + 1)
    tiles = tl.cdiv(i_last + 1 - start, BN)
    full_from = tl.maximum(i_last - window + 1, begin_last)
    whole_from = tl.minimum(tl.cdiv(tl.maximum(full_from - start, 0), BN), tiles)
    whole_to = tl.maximum((i_first + 1 - start) // BN, whole_from)
    return start, tiles, whole_from, whole_to


@triton.jit
def load_rows(ptr, row, width: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of D elements that lie `width` apart: [rows, BLOCK_D], zeros beyond D."""
    d = tl.arange(0, BLOCK_D)
    at = row[:, None] * width + d[None, :]
    if D == BLOCK_D:
        return tl.load(ptr + at)
    return tl.load(ptr + at, mask=d[None, :] < D, other=0.0)


@triton.jit
def rows_of(N: tl.constexpr, T, SHORT: tl.constexpr):
    """Rows of a tile that ends at T or earlier: 0..N-1, and no further than a T shorter than N.

    Without the bound, addresses are known to be consecutive, so that loads are wide.
    """
    n = tl.arange(0, N)
    if SHORT:
        n = tl.minimum(n, T - 1)
    return n


@triton.jit
def within(i, start, span):
    """Whether start <= i < start + span, in one comparison; span is not negative."""
    return (i - start).to(tl.uint32, bitcast=True) < span.to(tl.uint32, bitcast=True)


@triton.jit
def _absorb(scores, v, acc, total, top, scale_log2, PRECISION: tl.constexpr):
    """Online softmax in base 2 over one more tile of columns."""
    new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
    p = tl.exp2(scores * scale_log2 - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, total, new_top


@triton.jit(do_not_specialize=["T", "window", "segment", "segments"])
def forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, begin_ptr,
    column_ptr, until_ptr, count_ptr, least_ptr, rank_ptr,
    scale_log2, T, window, segment, segments,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
    HAS_KEPT: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    """One program a tile of queries and head: o and the log-sum-exp. SHORT: T is below a tile."""
    tiles_T = tl.cdiv(T, BM)
    pid = tl.program_id(0)
    heads = tl.num_programs(0) // tiles_T
    # late queries have the most columns: those of all heads go first
    i_first = (tiles_T - 1 - pid // heads) * BM
    i_last = tl.minimum(i_first + BM, T) - 1
    head_q = pid % heads
    batch = head_q // (H * G)
    head = batch * H + head_q % (H * G) // G
    row = batch.to(tl.int64) * T
    k_ptr += (row * H + head % H) * D
    v_ptr += (row * H + head % H) * D
    q_ptr += ((row + i_first) * H * G + head_q % (H * G)) * D
    o_ptr += ((row + i_first) * H * G + head_q % (H * G)) * D

    i = i_first + tl.arange(0, BM)
    span = window + tl.zeros([BM], tl.int32)  # columns up to i that are near
    begin_first = 0
    begin_last = 0
    if PACKED:
        begin = tl.load(begin_ptr + tl.minimum(i, T - 1))
        span = tl.minimum(span, i - begin + 1)
        begin_first = tl.load(begin_ptr + i_first)
        begin_last = tl.load(begin_ptr + i_last)
    q = load_rows(q_ptr, tl.minimum(i, T - 1) - i_first, H * G * D, D, BLOCK_D)
    acc = tl.zeros([BM, BLOCK_D], tl.float32)
    total = tl.zeros([BM], tl.float32)
    # finite, so that a tile without a visible column changes nothing
    top = tl.full([BM], -1e38, tl.float32)
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
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if tile >= whole:
                # loaded again, so that tiles seen whole hold no registers for the mask
                start = tl.load(column_ptr + place, mask=place < past, other=0) + window
                until = tl.load(until_ptr + place, mask=place < past, other=0)
                seen = within(i[:, None], start[None, :], tl.maximum(until - start, 0)[None, :])
                scores = tl.where(seen, scores, float("-inf"))
            v = load_rows(v_ptr, j, H * D, D, BLOCK_D)
            acc, total, top = _absorb(scores, v, acc, total, top, scale_log2, PRECISION)

    start, tiles, whole_from, whole_to = window_tiles(
        i_first, i_last, begin_first, begin_last, window, BN
    )
    near = rows_of(BN, T, SHORT)
    for tile in range(0, tiles):
        j_nominal = start + tile * BN
        # the last tile begins earlier rather than end beyond T: its rows need no bound of their own
        j_first = tl.maximum(tl.minimum(j_nominal, T - BN), 0)
        at_j = j_first.to(tl.int64) * (H * D)
        k = load_rows(k_ptr + at_j, near, H * D, D, BLOCK_D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if (tile < whole_from) | (tile >= whole_to):
            j = j_first + n
            j = tl.where(j >= j_nominal, j, 1 << 30)  # those of the tile before: out of sight
            scores = tl.where(within(i[:, None], j[None, :], span[:, None]), scores, float("-inf"))
        v = load_rows(v_ptr + at_j, near, H * D, D, BLOCK_D)
        acc, total, top = _absorb(scores, v, acc, total, top, scale_log2, PRECISION)

    d = tl.arange(0, BLOCK_D)
    at_o = (i - i_first)[:, None] * (H * G * D) + d[None, :]
    o = acc / total[:, None]
    tl.store(o_ptr + at_o, o.to(o_ptr.dtype.element_ty), mask=(i[:, None] < T) & (d[None, :] < D))
    lse = (top + tl.log2(total)) * 0.6931471805599453
    tl.store(lse_ptr + head_q.to(tl.int64) * T + i, lse, mask=i < T)
