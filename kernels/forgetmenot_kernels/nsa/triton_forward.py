# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Forward kernels: compression with the importance of blocks, and selection with the gates.

A program owns a tile of queries with all heads of a KV head (see `triton_tiles`), so that it reads
each block once for all of them. Log-sum-exps are in base 2.
"""

import triton
import triton.language as tl

from forgetmenot_kernels.lte_attention.triton_forward import load_rows
from forgetmenot_kernels.nsa.triton_tiles import place, query_rows, scores_of_parts


@triton.jit
def listed(turn, query, block_ptr, queries_ptr, BLOCK: tl.constexpr, BN: tl.constexpr):
    """Of a turn of the walk over a tile's list: its first token, how many of its block are left
    from there on, and which rows' queries chose the block [BM].
    """
    turns: tl.constexpr = (BLOCK + BN - 1) // BN
    inner = turn % turns * BN
    start = tl.load(block_ptr + turn // turns) * BLOCK + inner
    chosen = (tl.load(queries_ptr + turn // turns) >> query) & 1
    return start, BLOCK - inner, chosen > 0


@triton.jit
def _update(top, total, scores, scale_log2, takes_part):
    """The largest score (base 2) and the sum of weights relative to it, with more columns for the
    rows that take part; also the weights of these, and what earlier ones are multiplied by.
    """
    most = tl.where(takes_part, tl.max(scores, 1) * scale_log2, -1e38)
    new_top = tl.maximum(top, most)
    p = tl.exp2(scores * scale_log2 - tl.where(takes_part, new_top, float("inf"))[:, None])
    shrink = tl.exp2(top - new_top)
    return new_top, total * shrink + tl.sum(p, 1), p, shrink


@triton.jit(do_not_specialize=["T", "P", "tile0", "step"])
def compress_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, importance_ptr, places_ptr, scale_log2, T, P, tile0, step,
    H: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SUM_PARTS: tl.constexpr, K_PARTS: tl.constexpr, V_PARTS: tl.constexpr, SHIFT: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    """One program a tile and KV head: attention over pooled blocks, and their weights summed over
    the group, [H, tiles x queries, P] for the tiles from tile0 on. SUM_PARTS of the keys do for the
    sum of weights, in which rounding cancels out.
    """
    BQ: tl.constexpr = BM // RP
    head = tl.program_id(1)
    begin, first, length, blocks = place(
        tile0 + tl.program_id(0), places_ptr, T, P, BQ, PACKED
    )  # fmt: skip
    if first < length:
        i, row, inside = query_rows(first, length, head, BM, R, RP, H * R)
        row += begin * (H * R)
        k_ptr += (blocks * H + head) * D
        v_ptr += (blocks * H + head) * D
        q = load_rows(q_ptr, row, D, D, BLOCK_D)
        last = (length - 1) // BLOCK
        turns = tl.cdiv(tl.minimum(first + BQ, length) // BLOCK, BN)
        n = tl.arange(0, BN)
        complete = (i + 1) // BLOCK
        top = tl.full([BM], -1e38, tl.float32)  # finite: a turn with nothing seen changes nothing
        total = tl.zeros([BM], tl.float32)
        k_at = k_ptr
        for turn in range(0, turns - 1):
            near = tl.minimum(n, last - turn * BN)
            scores, _ = scores_of_parts(q, k_at, near, step, H, D, BLOCK_D, SUM_PARTS, SHIFT)
            seen = turn * BN + n[None, :] < complete[:, None]
            scores = tl.where(seen, scores, float("-inf"))
            top, total, _p, _shrink = _update(top, total, scores, scale_log2, inside)
            k_at += BN * H * D

        to = head * tl.num_programs(0).to(tl.int64) * BQ + tl.program_id(0) * BQ + tl.arange(0, BQ)
        lse = top
        acc = tl.zeros([BM, BLOCK_D], tl.float32)
        # the last turn first: with it the sum of weights is known
        for back in range(0, turns):
            start = (turns - 1 - back) * BN
            at = start.to(tl.int64) * (H * D)
            near = tl.minimum(n, last - start)
            scores, _ = scores_of_parts(q, k_ptr + at, near, step, H, D, BLOCK_D, K_PARTS, SHIFT)
            seen = start + n[None, :] < complete[:, None]
            scores = tl.where(seen, scores, float("-inf"))
            if back == 0:
                top, total, _p, _shrink = _update(top, total, scores, scale_log2, inside)
                lse = tl.where(total > 0, top + tl.log2(tl.where(total > 0, total, 1.0)), 0.0)
            p = tl.exp2(scores * scale_log2 - tl.where(inside, lse, float("inf"))[:, None])
            v = load_rows(v_ptr + at, near, H * D, D, BLOCK_D)
            acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
            if V_PARTS == 2:
                v = load_rows(v_ptr + step + at, near, H * D, D, BLOCK_D)
                acc += tl.dot(p.to(v.dtype), v, input_precision="ieee") * (1.0 / SHIFT)
            importance = tl.sum(tl.reshape(p, [BQ, RP, BN]), 1)
            at_p = to[:, None] * P + (start + n)[None, :]
            tl.store(importance_ptr + at_p, importance, mask=(start + n < P)[None, :])
        d = tl.arange(0, BLOCK_D)
        stored = inside[:, None] & (d[None, :] < D)
        tl.store(o_ptr + row[:, None] * D + d[None, :], acc.to(o_ptr.dtype.element_ty), mask=stored)
        tl.store(lse_ptr + row, lse, mask=inside)


@triton.jit(do_not_specialize=["T", "P", "room"])
def select_kernel(
    q_ptr, k_ptr, v_ptr, gate_ptr, compressed_ptr, near_ptr, o_ptr, picked_ptr, lse_ptr,
    block_ptr, queries_ptr, count_ptr, places_ptr, scale_log2, T, P, room,
    H: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    """One program a tile and KV head: attention over the chosen blocks, and the gated sum."""
    BQ: tl.constexpr = BM // RP
    head = tl.program_id(1)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # late queries have the most blocks
    begin, first, length, _ = place(tile, places_ptr, T, P, BQ, PACKED)
    if first < length:
        where = head * tl.num_programs(0).to(tl.int64) + tile
        i, row, inside = query_rows(first, length, head, BM, R, RP, H * R)
        row += begin * (H * R)
        query = (tl.arange(0, BM) // RP).to(tl.int64)
        q = load_rows(q_ptr, row, D, D, BLOCK_D)
        turns: tl.constexpr = (BLOCK + BN - 1) // BN
        k_ptr += (begin * H + head) * D
        v_ptr += (begin * H + head) * D
        block_ptr += where * room
        queries_ptr += where * room
        n = tl.arange(0, BN)
        top = tl.full([BM], -1e38, tl.float32)
        total = tl.zeros([BM], tl.float32)
        acc = tl.zeros([BM, BLOCK_D], tl.float32)
        for turn in range(0, tl.load(count_ptr + where) * turns):
            start, left, chosen = listed(turn, query, block_ptr, queries_ptr, BLOCK, BN)
            at = start.to(tl.int64) * (H * D)
            near = tl.minimum(n, length - 1 - start)
            k = load_rows(k_ptr + at, near, H * D, D, BLOCK_D)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
            if (start + BN > first + 1) | (left < BN):  # else all rows see all or nothing
                seen = tl.minimum(i + 1 - start, left)
                scores = tl.where(n[None, :] < seen[:, None], scores, float("-inf"))
            top, total, p, shrink = _update(top, total, scores, scale_log2, chosen)
            v = load_rows(v_ptr + at, near, H * D, D, BLOCK_D)
            acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        picked = acc / total[:, None]
        lse = top + tl.log2(total)
        d = tl.arange(0, BLOCK_D)
        at = row[:, None] * D + d[None, :]
        stored = inside[:, None] & (d[None, :] < D)
        compressed = tl.load(compressed_ptr + at, mask=stored, other=0.0).to(tl.float32)
        near = tl.load(near_ptr + at, mask=stored, other=0.0).to(tl.float32)
        gate = gate_ptr + row * 3
        o = tl.load(gate).to(tl.float32)[:, None] * compressed
        o += tl.load(gate + 1).to(tl.float32)[:, None] * picked
        o += tl.load(gate + 2).to(tl.float32)[:, None] * near
        tl.store(o_ptr + at, o.to(o_ptr.dtype.element_ty), mask=stored)
        if picked_ptr is not None:
            tl.store(picked_ptr + at, picked.to(picked_ptr.dtype.element_ty), mask=stored)
        tl.store(lse_ptr + row, lse, mask=inside)
