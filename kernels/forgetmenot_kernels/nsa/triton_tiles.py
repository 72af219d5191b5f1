# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Where tiles of queries and blocks lie, and the means of blocks.

Sequences (the rows of a batch or packed documents) lie one after another on the token axis, their
blocks on the block axis. A row of a tile of queries is one query head of one query: R heads of a
KV head, filled up to RP, a query.
"""

import torch
import triton
import triton.language as tl

from forgetmenot_kernels.lte_attention.triton_forward import load_rows


@triton.jit
def place(tile, places_ptr, T, P, SIZE: tl.constexpr, PACKED: tl.constexpr):
    """Of the sequence that a tile of SIZE tokens lies in: its first token (int64), where the tile
    begins in it, its length and its first block (int64). The length is 0 for a tile too many.
    """
    if PACKED:
        begin = tl.load(places_ptr + 4 * tile)
        first = tl.load(places_ptr + 4 * tile + 1).to(tl.int32)
        length = tl.load(places_ptr + 4 * tile + 2).to(tl.int32)
        blocks = tl.load(places_ptr + 4 * tile + 3)
    else:
        tiles = tl.cdiv(T, SIZE)
        begin = (tile // tiles).to(tl.int64) * T
        first = tile % tiles * SIZE
        length = T
        blocks = (tile // tiles).to(tl.int64) * P
    return begin, first, length, blocks


def tile_count(size: int, batch: int, time: int, documents: int | None) -> int:
    """Tiles of `size` tokens, or with packed documents, the most that there can be."""
    whole: int = triton.cdiv(time, size)
    return batch * whole if documents is None else whole + documents


def packed_places(cu_seqlens: torch.Tensor, size: int, block: int, tiles: int) -> torch.Tensor:
    """What `place` loads, int64 [tiles, 4], without waiting for the device."""
    lengths_N = cu_seqlens.diff()
    tiles_N, blocks_N = ((lengths_N + s - 1) // s for s in (size, block))
    past_N = tiles_N.cumsum(0)
    tile = torch.arange(tiles, device=cu_seqlens.device)
    document = torch.searchsorted(past_N, tile, right=True)
    used = document < len(lengths_N)
    document = document.clamp(max=len(lengths_N) - 1)
    first = (tile - (past_N - tiles_N)[document]) * size
    blocks = (blocks_N.cumsum(0) - blocks_N)[document]
    return torch.stack((cu_seqlens[document], first, lengths_N[document] * used, blocks), 1)


@triton.jit
def query_rows(first, length, head, BM: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, G):
    """Of each row of a tile: its query's place, its row in [tokens, G] counted from the sequence's
    first token (int64), and whether it is one; rows too many repeat others.
    """
    r = tl.arange(0, BM)
    i = first + r // RP
    inside = (i < length) & (r % RP < R)
    i = tl.minimum(i, length - 1)
    return i, i.to(tl.int64) * G + head * R + tl.minimum(r % RP, R - 1), inside


@triton.jit
def _store_parts(ptr, x, stored, step, PARTS: tl.constexpr, SHIFT: tl.constexpr):
    for _ in tl.static_range(PARTS):
        part = x.to(ptr.dtype.element_ty)
        tl.store(ptr, part, mask=stored)
        x = (x - part.to(tl.float32)) * SHIFT
        ptr += step


@triton.jit(do_not_specialize=["T", "P"])
def pool_kernel(
    k_ptr, v_ptr, pooled_k_ptr, pooled_v_ptr, places_ptr, T, P,
    H: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
    BN: tl.constexpr, K_PARTS: tl.constexpr, V_PARTS: tl.constexpr, SHIFT: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    """One program a block and KV head: its means; missing tokens count as zeros.

    The means are float32 and kept as a sum of parts, part 0 + part 1 / SHIFT + ..., in the dtype
    of the keys, [parts, blocks, H, D], so that their products are as exact and as fast.
    """
    block = tl.program_id(0)
    head = tl.program_id(1)
    begin, first, length, _ = place(block, places_ptr, T, P, BLOCK, PACKED)
    at = ((begin + first) * H + head) * D
    last = length - 1 - first
    sum_k = tl.zeros([BLOCK_D], tl.float32)
    sum_v = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, BLOCK, BN):
        n = start + tl.arange(0, BN)
        inside = ((n < BLOCK) & (n <= last))[:, None]
        near = tl.maximum(tl.minimum(n, last), 0)
        k = load_rows(k_ptr + at, near, H * D, D, BLOCK_D).to(tl.float32)
        v = load_rows(v_ptr + at, near, H * D, D, BLOCK_D).to(tl.float32)
        sum_k += tl.sum(tl.where(inside, k, 0.0), 0)
        sum_v += tl.sum(tl.where(inside, v, 0.0), 0)
    d = tl.arange(0, BLOCK_D)
    at = (block.to(tl.int64) * H + head) * D + d
    step = tl.num_programs(0).to(tl.int64) * (H * D)
    stored = (d < D) & (length > 0)
    _store_parts(pooled_k_ptr + at, sum_k / BLOCK, stored, step, K_PARTS, SHIFT)
    _store_parts(pooled_v_ptr + at, sum_v / BLOCK, stored, step, V_PARTS, SHIFT)


@triton.jit
def scores_of_parts(
    q, k_ptr, near, step,
    H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Scores q k^T for keys in parts that lie `step` apart, and part 0 of the keys."""
    k = load_rows(k_ptr + (PARTS - 1) * step, near, H * D, D, BLOCK_D)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    for part in tl.static_range(1, PARTS):
        k = load_rows(k_ptr + (PARTS - 1 - part) * step, near, H * D, D, BLOCK_D)
        scores = tl.dot(q, tl.trans(k), scores * (1.0 / SHIFT), input_precision="ieee")
    return scores, k
