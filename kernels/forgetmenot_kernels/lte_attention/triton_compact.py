# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Compaction on the GPU: per KV head, the columns that are ever seen outside the window.

Shape suffixes: B batch, T tokens, H KV heads, S segments of queries, C places of a list.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

# least queries of a segment and most segments; tiles of queries lie inside a segment
SEGMENT = 1024
SEGMENTS = 32


class Kept(NamedTuple):
    """Lists of kept columns, ordered by position, one for each segment of queries and one for all.

    A column is in a segment's list when a query of the segment may see it outside the window, so
    that the length of a list follows what is visible then and not what was ever kept. The last
    list (index S) holds all kept columns. `until` is the row's first token that no longer sees
    the column. `rank` is the number of kept columns among tokens 0..t.
    """

    column_BHSC: torch.Tensor  # int32 [B, H, S + 1, T], like until
    until_BHSC: torch.Tensor
    count_BHS: torch.Tensor  # int32: filled places of each list
    least_until_BHS: torch.Tensor  # int32: smallest `until` of each list
    rank_BHT: torch.Tensor  # int32
    segment: int  # queries of a segment


@triton.jit
def _compact_kernel(
    visible_until_ptr, begin_ptr, end_ptr, column_ptr, until_ptr, count_ptr, least_ptr, rank_ptr,
    T, window, sink, segment, segments,
    H: tl.constexpr, HAS_UNTIL: tl.constexpr, PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0) % (segments + 1)
    head = tl.program_id(0) // (segments + 1)
    batch = head // H
    all_parts = part == segments
    first = tl.where(all_parts, 0, part * segment)
    past = tl.where(all_parts, T, tl.minimum((part + 1) * segment, T))
    list_at = (head.to(tl.int64) * (segments + 1) + part) * T
    rank_at = head.to(tl.int64) * T
    count = tl.zeros([], tl.int32)
    least = tl.zeros([], tl.int32) + T
    # columns that leave the window after the segment are in no list but may have a rank
    for start in range(0, tl.where(all_parts, T, tl.maximum(past - window, 0)), BLOCK):
        t = start + tl.arange(0, BLOCK)
        inside = t < T
        begin = tl.load(begin_ptr + t, mask=inside, other=0) if PACKED else 0
        end = tl.load(end_ptr + t, mask=inside, other=0) if PACKED else T
        until = tl.zeros([BLOCK], tl.int32)
        if HAS_UNTIL:
            at = (batch.to(tl.int64) * T + t) * H + head % H
            until = tl.load(visible_until_ptr + at, mask=inside, other=0)
        until = begin + tl.where(t - begin < sink, end - begin, tl.minimum(until, end - begin))
        listed = inside & (until > t + window) & (until > first) & (t + window < past)
        ranks = count + tl.cumsum(listed.to(tl.int32), 0)
        tl.store(column_ptr + list_at + ranks - 1, t, mask=listed)
        tl.store(until_ptr + list_at + ranks - 1, until, mask=listed)
        tl.store(rank_ptr + rank_at + t, ranks, mask=inside & all_parts)
        count += tl.sum(listed.to(tl.int32), 0)
        least = tl.minimum(least, tl.min(tl.where(listed, until, T), 0))
    tl.store(count_ptr + head * (segments + 1) + part, count)
    tl.store(least_ptr + head * (segments + 1) + part, least)


def compact(
    visible_until_BTH: torch.Tensor | None,
    begin_T: torch.Tensor | None,
    end_T: torch.Tensor | None,
    shape_BTH: tuple[int, int, int],
    window: int,
    sink: int,
    device: torch.device,
) -> Kept:
    """The lists of kept columns, without waiting for the device: every list has room for all.

    `begin_T` and `end_T` (int32) are the borders of each token's document, None without packing;
    `visible_until_BTH` (int32, contiguous) counts from the document's first token.
    """
    batch, time, heads = shape_BTH
    segment = max(SEGMENT, 128 * triton.cdiv(time, SEGMENTS * 128))
    segments = triton.cdiv(time, segment)

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    kept = Kept(
        empty(batch, heads, segments + 1, time),
        empty(batch, heads, segments + 1, time),
        empty(batch, heads, segments + 1),
        empty(batch, heads, segments + 1),
        empty(batch, heads, time),
        segment,
    )
    _compact_kernel[(batch * heads * (segments + 1),)](
        visible_until_BTH, begin_T, end_T, *kept[:5], time, window, sink, segment, segments,
        H=heads, HAS_UNTIL=visible_until_BTH is not None, PACKED=begin_T is not None, BLOCK=1024,
        num_warps=4,
    )  # fmt: skip
    return kept
