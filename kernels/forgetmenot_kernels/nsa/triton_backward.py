# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Backward kernels; none of them uses atomics, so gradients repeat bit by bit.

With p = exp(s - lse) and a branch's gate g and output b: dgate = <do, b>, dp = do v^T,
ds = g p (dp - dgate), dq = scale ds k, dk = scale ds^T q, dv = (g p)^T do. dgate [tokens, G, 3] is
kept in float32 for the kernels that follow. Key-major tiles are computed transposed, so that no
product takes the transpose of another product.
"""

import triton
import triton.language as tl

from forgetmenot_kernels.lte_attention.triton_forward import load_rows
from forgetmenot_kernels.nsa.triton_forward import listed
from forgetmenot_kernels.nsa.triton_tiles import place, query_rows, scores_of_parts


@triton.jit
def _walk_columns(
    dq, q, do, k_ptr, v_ptr, gate, dgate, lse, turns, first, last, i, query, block_ptr, queries_ptr,
    scale_log2, step, H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr, BN: tl.constexpr, COMPRESSED: tl.constexpr,
    K_PARTS: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Adds the (unscaled) gradient of a tile of queries through one branch to dq."""
    n = tl.arange(0, BN)
    for turn in range(0, turns):
        if COMPRESSED:
            start = turn * BN
            shift = lse
        else:
            start, left, chosen = listed(turn, query, block_ptr, queries_ptr, BLOCK, BN)
            shift = tl.where(chosen, lse, float("inf"))
        at = start.to(tl.int64) * (H * D)
        near = tl.minimum(n, last - start)
        scores, k = scores_of_parts(q, k_ptr + at, near, step, H, D, BLOCK_D, K_PARTS, SHIFT)
        v = load_rows(v_ptr + at, near, H * D, D, BLOCK_D)
        p = tl.exp2(scores * scale_log2 - shift[:, None]) * gate[:, None]
        if COMPRESSED:
            seen = start + n[None, :] < ((i + 1) // BLOCK)[:, None]
            p = tl.where(seen, p, 0.0)
        elif (start + BN > first + 1) | (left < BN):  # else all rows see all or nothing
            seen = n[None, :] < tl.minimum(i + 1 - start, left)[:, None]
            p = tl.where(seen, p, 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        ds = p * (dp - dgate[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    return dq


@triton.jit(do_not_specialize=["T", "P", "room", "step"])
def query_kernel(
    q_ptr, k_ptr, v_ptr, gate_ptr, pooled_k_ptr, pooled_v_ptr,
    compressed_ptr, picked_ptr, near_ptr, do_ptr,
    compressed_lse_ptr, lse_ptr, dq_ptr, dgate_ptr, dnear_ptr,
    block_ptr, queries_ptr, count_ptr, places_ptr, scale, scale_log2, T, P, room, step,
    H: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    K_PARTS: tl.constexpr, SHIFT: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """One program a tile and KV head: dq, dgate and the gradient of the window's output."""
    BQ: tl.constexpr = BM // RP
    head = tl.program_id(1)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    begin, first, length, blocks = place(tile, places_ptr, T, P, BQ, PACKED)
    if first < length:
        where = head * tl.num_programs(0).to(tl.int64) + tile
        i, row, inside = query_rows(first, length, head, BM, R, RP, H * R)
        row += begin * (H * R)
        query = (tl.arange(0, BM) // RP).to(tl.int64)
        d = tl.arange(0, BLOCK_D)
        at = row[:, None] * D + d[None, :]
        stored = inside[:, None] & (d[None, :] < D)

        do = load_rows(do_ptr, row, D, D, BLOCK_D)
        do32 = do.to(tl.float32)
        compressed = load_rows(compressed_ptr, row, D, D, BLOCK_D)
        dgate0 = tl.sum(do32 * compressed.to(tl.float32), 1)
        picked = load_rows(picked_ptr, row, D, D, BLOCK_D)
        dgate1 = tl.sum(do32 * picked.to(tl.float32), 1)
        near = load_rows(near_ptr, row, D, D, BLOCK_D)
        dgate2 = tl.sum(do32 * near.to(tl.float32), 1)
        tl.store(dgate_ptr + row * 3, dgate0, mask=inside)
        tl.store(dgate_ptr + row * 3 + 1, dgate1, mask=inside)
        tl.store(dgate_ptr + row * 3 + 2, dgate2, mask=inside)
        gate0 = tl.load(gate_ptr + row * 3).to(tl.float32)
        gate1 = tl.load(gate_ptr + row * 3 + 1).to(tl.float32)
        gate2 = tl.load(gate_ptr + row * 3 + 2).to(tl.float32)
        dnear = (do32 * gate2[:, None]).to(dnear_ptr.dtype.element_ty)
        tl.store(dnear_ptr + at, dnear, mask=stored)

        q = load_rows(q_ptr, row, D, D, BLOCK_D)
        dq = tl.zeros([BM, BLOCK_D], tl.float32)
        dq = _walk_columns(
            dq, q, do,
            pooled_k_ptr + (blocks * H + head) * D, pooled_v_ptr + (blocks * H + head) * D,
            gate0, dgate0, tl.load(compressed_lse_ptr + row),
            tl.cdiv(tl.minimum(first + BQ, length) // BLOCK, BN), first, (length - 1) // BLOCK,
            i, query, block_ptr, queries_ptr, scale_log2, step,
            H, D, BLOCK_D, BLOCK, BN, True, K_PARTS, SHIFT,
        )  # fmt: skip
        turns: tl.constexpr = (BLOCK + BN - 1) // BN
        dq = _walk_columns(
            dq, q, do, k_ptr + (begin * H + head) * D, v_ptr + (begin * H + head) * D,
            gate1, dgate1, tl.load(lse_ptr + row), tl.load(count_ptr + where) * turns, first,
            length - 1, i, query, block_ptr + where * room, queries_ptr + where * room,
            scale_log2, 0, H, D, BLOCK_D, BLOCK, BN, False, 1, 1.0,
        )  # fmt: skip
        tl.store(dq_ptr + at, (dq * scale).to(dq_ptr.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=["T", "P", "blocks", "chunks", "room", "step"])
def key_kernel(
    q_ptr, k_ptr, v_ptr, gate_ptr, do_ptr, lse_ptr, dgate_ptr, dk_part_ptr, dv_part_ptr,
    query_ptr, item_ptr, count_ptr, past_ptr, past_item_ptr, places_ptr,
    scale_log2, T, P, blocks, chunks, room, step,
    H: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    K_PARTS: tl.constexpr, SHIFT: tl.constexpr, PACKED: tl.constexpr, COMPRESSED: tl.constexpr,
):  # fmt: skip
    """One program a tile of columns and up to `room` of the queries that see them: partial sums of
    dk (unscaled) and dv, float32.

    Compressed: BN pooled blocks; parts are [chunks of queries, blocks, H, D]. Else tokens of the
    block of an item (see `block_queries_kernel`); parts are [items, turns, BN, D].
    """
    n = tl.arange(0, BN)
    r = tl.arange(0, BM)
    d = tl.arange(0, BLOCK_D)
    if COMPRESSED:
        head = tl.program_id(0) % H
        chunk = tl.program_id(0) // H % chunks
        begin, first, length, first_block = place(
            tl.program_id(0) // H // chunks, places_ptr, T, P, BN * BLOCK, PACKED
        )  # fmt: skip
        start = first // BLOCK
        last = (length - 1) // BLOCK - start
        row0 = first_block + start
        query0 = first + chunk * room
        count = tl.minimum(length - query0, room)
        part = ((chunk * blocks.to(tl.int64) + row0) * H + head) * D
        stored = (n <= last)[:, None] & (d[None, :] < D)
    else:
        turns: tl.constexpr = (BLOCK + BN - 1) // BN
        item = tl.program_id(0) // turns
        inner = tl.program_id(0) % turns * BN
        items = tl.load(past_item_ptr + H * blocks - 1)
        used = item < items
        item = tl.minimum(item, items - 1)
        where = tl.load(item_ptr + item)
        head = where // blocks
        begin, first, length, _ = place(where % blocks, places_ptr, T, P, BLOCK, PACKED)
        total = tl.load(count_ptr + where)
        begun = (item - tl.load(past_item_ptr + where)).to(tl.int32) + tl.cdiv(total, room)
        query_ptr += tl.load(past_ptr + where) - total + begun * room
        count = tl.where(used, tl.minimum(total - begun * room, room), 0)
        start = first + inner
        last = length - 1 - start
        row0 = begin + start
        part = tl.program_id(0).to(tl.int64) * (BN * D)
        stored = (n >= 0)[:, None] & (d[None, :] < D)
    if count > 0:
        at = (row0 * H + head) * D
        k = load_rows(k_ptr + at, tl.minimum(n, last), H * D, D, BLOCK_D)
        v = load_rows(v_ptr + at, tl.minimum(n, last), H * D, D, BLOCK_D)
        if K_PARTS == 2:
            low = load_rows(k_ptr + step + at, tl.minimum(n, last), H * D, D, BLOCK_D)
        dk = tl.zeros([BN, BLOCK_D], tl.float32)
        dv = tl.zeros([BN, BLOCK_D], tl.float32)
        BQ: tl.constexpr = BM // RP
        for turn in range(0, tl.cdiv(count, BQ)):
            e = turn * BQ + r // RP
            inside = (e < count) & (r % RP < R)
            e = tl.minimum(e, count - 1)
            if COMPRESSED:
                t = query0 + e
                seen = (t + 1) // BLOCK - start
                whole = False
            else:
                t = tl.load(query_ptr + e)
                seen = tl.minimum(t + 1 - start, BLOCK - inner)
                # the list is in order
                whole = tl.load(query_ptr + turn * BQ) >= start + BN - 1
                whole = whole & (inner + BN <= BLOCK)
            row = (begin + t) * (H * R) + head * R + tl.minimum(r % RP, R - 1)
            q = load_rows(q_ptr, row, D, D, BLOCK_D)
            do = load_rows(do_ptr, row, D, D, BLOCK_D)
            branch: tl.constexpr = 0 if COMPRESSED else 1
            gate = tl.load(gate_ptr + row * 3 + branch).to(tl.float32)
            dgate = tl.load(dgate_ptr + row * 3 + branch)
            lse = tl.where(inside, tl.load(lse_ptr + row), float("inf"))
            scores_t = tl.dot(k, tl.trans(q), input_precision="ieee")
            if K_PARTS == 2:
                scores_t += tl.dot(low, tl.trans(q), input_precision="ieee") * (1.0 / SHIFT)
            p_t = tl.exp2(scores_t * scale_log2 - lse[None, :]) * gate[None, :]
            if not whole:
                p_t = tl.where(n[:, None] < seen[None, :], p_t, 0.0)
            dv = tl.dot(p_t.to(do.dtype), do, dv, input_precision="ieee")
            dp_t = tl.dot(v, tl.trans(do), input_precision="ieee")
            ds_t = p_t * (dp_t - dgate[None, :])
            dk = tl.dot(ds_t.to(q.dtype), q, dk, input_precision="ieee")
        to = part + n[:, None] * (H * D if COMPRESSED else D) + d[None, :]
        tl.store(dk_part_ptr + to, dk, mask=stored)
        tl.store(dv_part_ptr + to, dv, mask=stored)


@triton.jit(do_not_specialize=["T", "P", "chunk", "room"])
def finish_kernel(
    dk_part_ptr, dv_part_ptr, pooled_dk_part_ptr, pooled_dv_part_ptr, dk_ptr, dv_ptr,
    count_ptr, past_item_ptr, places_ptr, scale, T, P, chunk, room,
    H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
    BN: tl.constexpr, BP: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """One program a block, KV head and turn of its tokens: their dk and dv, from the parts in a
    fixed order.
    """
    turns: tl.constexpr = (BLOCK + BN - 1) // BN
    blocks = tl.num_programs(0)
    block = tl.program_id(0)
    head = tl.program_id(1)
    begin, first, length, _ = place(block, places_ptr, T, P, BLOCK, PACKED)
    inner = tl.program_id(2) * BN
    n = tl.arange(0, BN)
    d = tl.arange(0, BLOCK_D)
    wide = d[None, :] < D
    stored = ((inner + n < BLOCK) & (first + inner + n < length))[:, None] & wide
    dk = tl.zeros([BN, BLOCK_D], tl.float32)
    dv = tl.zeros([BN, BLOCK_D], tl.float32)
    pooled_dk = tl.zeros([BLOCK_D], tl.float32)
    pooled_dv = tl.zeros([BLOCK_D], tl.float32)
    if first < length:
        items = tl.cdiv(tl.load(count_ptr + head * blocks + block), room)
        item = tl.load(past_item_ptr + head * blocks + block) - items
        # unrolled, since one load after another would wait for the memory
        for e in tl.range(0, items, loop_unroll_factor=4):
            at = ((item + e) * turns + tl.program_id(2)) * (BN * D) + n[:, None] * D + d[None, :]
            dk += tl.load(dk_part_ptr + at, mask=wide, other=0.0)
            dv += tl.load(dv_part_ptr + at, mask=wide, other=0.0)
        first_seen = first // (BLOCK * BP) * (BLOCK * BP)
        for e in tl.range(0, tl.cdiv(length - first_seen, chunk), loop_unroll_factor=4):
            at = ((e * blocks.to(tl.int64) + block) * H + head) * D + d
            pooled_dk += tl.load(pooled_dk_part_ptr + at, mask=d < D, other=0.0)
            pooled_dv += tl.load(pooled_dv_part_ptr + at, mask=d < D, other=0.0)
    dk = (dk + pooled_dk[None, :] / BLOCK) * scale
    dv += pooled_dv[None, :] / BLOCK
    at = ((begin + first + inner) * H + head) * D + n[:, None] * (H * D) + d[None, :]
    tl.store(dk_ptr + at, dk.to(dk_ptr.dtype.element_ty), mask=stored)
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=stored)
