# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The choice of blocks on the GPU, and the lists that the attention kernels walk.

Chosen blocks are bits, int32 [H, words of 32 blocks, tokens]. From them come, for each tile of
queries, the blocks that some of its queries chose, each with the bits of those queries (int64), and
for the backward pass the queries of each block.
"""

import triton
import triton.language as tl

from forgetmenot_kernels.nsa.triton_tiles import place


@triton.jit
def top(rank, need):
    """What belongs to the `need` largest of each row of int32 `rank` [M, N], among equals the
    first; negative entries never do. The least value that does is found bit by bit.
    """
    least = need * 0
    for bit in range(0, 31):
        higher = least | (1 << (30 - bit))
        count = tl.sum((rank >= higher[:, None]).to(tl.int32), 1)
        least = tl.where(count >= need, higher, least)
    above = rank > least[:, None]
    equal = (rank == least[:, None]).to(tl.int32)
    room = need - tl.sum(above.to(tl.int32), 1)
    return above | ((equal > 0) & (tl.cumsum(equal, 1) <= room[:, None]))


@triton.jit
def choice(importance, p, i, BLOCK: tl.constexpr, S: tl.constexpr):
    """The S blocks [M, N] that the queries at places i [M] attend, by the importance [M, N] of the
    blocks p [N]: first, previous and current ones, then the most important complete ones.
    """
    current = i // BLOCK
    forced = (p[None, :] == 0) | (p[None, :] + 1 == current[:, None])
    forced = forced | (p[None, :] == current[:, None])
    candidate = (p[None, :] < current[:, None]) & ~forced
    # floats that are not negative are ordered as their bits
    rank = tl.where(candidate, importance.to(tl.int32, bitcast=True), -1)
    return forced | top(rank, S - tl.minimum(current + 1, 3))


@triton.jit(do_not_specialize=["T", "P", "N", "tile0"])
def choose_kernel(
    importance_ptr, bits_ptr, places_ptr, T, P, N, tile0,
    BLOCK: tl.constexpr, S: tl.constexpr, BQ: tl.constexpr, BR: tl.constexpr,
    WORDS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """One program BR queries of a tile and KV head. The importance is [H, tiles x BQ, P] of the
    tiles from tile0 on.
    """
    parts: tl.constexpr = BQ // BR
    head = tl.program_id(1)
    begin, first, length, _ = place(
        tile0 + tl.program_id(0) // parts, places_ptr, T, P, BQ, PACKED
    )  # fmt: skip
    i = first + tl.program_id(0) % parts * BR + tl.arange(0, BR)
    p = tl.arange(0, WORDS * 32)
    row = head * tl.num_programs(0).to(tl.int64) * BR + tl.program_id(0) * BR + tl.arange(0, BR)
    # all other blocks are no candidates
    complete = (p[None, :] < (i // BLOCK)[:, None]) & (i < length)[:, None]
    importance = tl.load(importance_ptr + row[:, None] * P + p[None, :], mask=complete, other=0.0)
    chosen = choice(importance, p, i, BLOCK, S).to(tl.int32) << (p % 32)[None, :]
    word = tl.sum(tl.reshape(chosen, [BR, WORDS, 32]), 2)
    w = tl.arange(0, WORDS)
    at = (head * tl.cdiv(P, 32) + w).to(tl.int64)[None, :] * N + (begin + i)[:, None]
    tl.store(bits_ptr + at, word, mask=(w[None, :] * 32 < P) & (i < length)[:, None])


@triton.jit(do_not_specialize=["T", "P", "N", "room"])
def unite_kernel(
    bits_ptr, block_ptr, queries_ptr, count_ptr, places_ptr, T, P, N, room,
    BLOCK: tl.constexpr, BQ: tl.constexpr, BP: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """One program a tile and KV head: the blocks of its queries, in order."""
    tile = tl.program_id(0)
    head = tl.program_id(1)
    begin, first, length, _ = place(tile, places_ptr, T, P, BQ, PACKED)
    q = tl.arange(0, BQ)
    i = first + q
    where = head * tl.num_programs(0).to(tl.int64) + tile
    count = tl.zeros([], tl.int32)
    for start in range(0, (tl.minimum(first + BQ, length) - 1) // BLOCK + 1, BP):
        p = start + tl.arange(0, BP)
        at = (head * tl.cdiv(P, 32) + p // 32).to(tl.int64)[None, :] * N + (begin + i)[:, None]
        inside = (p < P)[None, :] & (i < length)[:, None]
        bit = (tl.load(bits_ptr + at, mask=inside, other=0) >> (p % 32)[None, :]) & 1
        queries = tl.sum(bit.to(tl.int64) << q.to(tl.int64)[:, None], 0)
        listed = queries != 0
        to = where * room + count + tl.cumsum(listed.to(tl.int32), 0) - 1
        tl.store(block_ptr + to, p, mask=listed)
        tl.store(queries_ptr + to, queries, mask=listed)
        count += tl.sum(listed.to(tl.int32), 0)
    tl.store(count_ptr + where, count)


@triton.jit(do_not_specialize=["T", "P", "N", "room"])
def block_queries_kernel(
    bits_ptr, count_ptr, past_ptr, past_item_ptr, query_ptr, item_ptr, places_ptr, T, P, N, room,
    BLOCK: tl.constexpr, BT: tl.constexpr, PACKED: tl.constexpr, FILL: tl.constexpr,
):  # fmt: skip
    """One program a block and KV head: how many queries chose it, or with FILL their list, and for
    each of the items of up to `room` queries that the list is cut into, the block.

    The lists of [H, blocks] lie one after another; `past_ptr` and `past_item_ptr` are their ends.
    """
    block = tl.program_id(0)
    head = tl.program_id(1)
    begin, first, length, _ = place(block, places_ptr, T, P, BLOCK, PACKED)
    word = head * tl.cdiv(P, 32) + first // BLOCK // 32
    bits_ptr += word.to(tl.int64) * N + begin
    where = head * tl.num_programs(0) + block
    count = tl.zeros([], tl.int32)
    if FILL:
        total = tl.load(count_ptr + where)
        query_ptr += tl.load(past_ptr + where) - total
        items = tl.cdiv(total, room)
        item_ptr += tl.load(past_item_ptr + where) - items
        for item in range(0, items):
            tl.store(item_ptr + item, where)
    for start in range(first, length, BT):
        t = start + tl.arange(0, BT)
        bit = (tl.load(bits_ptr + t, mask=t < length, other=0) >> (first // BLOCK % 32)) & 1
        if FILL:
            tl.store(query_ptr + count + tl.cumsum(bit, 0) - 1, t, mask=bit > 0)
        count += tl.sum(bit, 0)
    if not FILL:
        tl.store(count_ptr + where, count)
