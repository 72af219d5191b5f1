# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""One token a sequence over the constant-size memory through Triton, in place.

The first kernel only reads: a program attends over one part of a head's slots as they will be, the
second joins the parts and writes. So no program sees half a change, and two launches are enough.
Shape suffixes as in `cache.py`, and G query heads, P parts.
"""

import torch
import triton
import triton.language as tl

from forgetmenot_kernels.lte_attention.cache import Cache

LOG2_E = 1.4426950408889634
# of a part: at most so many slots, and so many bytes of keys
SLOTS, TILE_BYTES = 128, 2**14
WARPS = 4
JOINED = 32  # parts that are joined at once
KEPT = 1024  # kept slots that are looked through at once


@triton.jit
def _kept_slot(
    score_ptr, position_ptr, length,
    W: tl.constexpr, N: tl.constexpr, sink, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The kept slot that the token leaving the window takes, -1 when it is dropped.

    That of the lowest score (empty slots have -inf), the newest among equals, the first among
    empty ones, if its own score is strictly higher.
    """
    leaving = length - W
    score = tl.load(score_ptr + length % W)
    wanted = (leaving >= 0) & ((score > 0) | (leaving < sink))
    score = tl.where(leaving < sink, float("inf"), score)
    lowest = float("inf")
    newest = leaving * 0 - 3
    slot = leaving * 0 - 1
    for start in tl.static_range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        held = tl.load(score_ptr + W + n, mask=n < N, other=float("inf"))
        position = tl.load(position_ptr + n, mask=n < N, other=-2)
        low = tl.min(held, 0)
        new = tl.max(tl.where(held == low, position, -2), 0)
        first = tl.min(tl.where((held == low) & (position == new), n, N), 0)
        better = (low < lowest) | ((low == lowest) & (new > newest))
        slot = tl.where(better, first, slot)
        newest = tl.where(better, new, newest)
        lowest = tl.minimum(low, lowest)
    return tl.where(wanted & (score > lowest), slot, -1)


@triton.jit
def _attend_kernel(
    q_ptr, k_ptr, v_ptr, cache_k_ptr, cache_v_ptr, score_ptr, position_ptr, length_ptr,
    o_ptr, lse_ptr, plan_ptr, scale_log2, sink, H, W: tl.constexpr, N: tl.constexpr,
    P: tl.constexpr, R: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One part of one KV head's slots: o and base-2 log-sum-exp of each of its R query heads.

    The two slots that change are left out of the tile, and what they will hold is added. The last
    part also notes the sequence's length and the kept slot to write, since the other kernel changes
    what they follow from.
    """
    part = tl.program_id(0) % P
    head = (tl.program_id(0) // P).to(tl.int64)
    length = tl.load(length_ptr + head // H)
    c = part * BLOCK_C + tl.arange(0, BLOCK_C)
    d = tl.arange(0, BLOCK_D)
    wide = d < D
    rows = head * (W + N)
    at = c[:, None] * D + d[None, :]
    # what is not seen is loaded too: the loads need not wait for the length
    mask = (c < W + N)[:, None] & wide[None, :]
    k = tl.load(cache_k_ptr + rows * D + at, mask=mask, other=0.0)
    v = tl.load(cache_v_ptr + rows * D + at, mask=mask, other=0.0)
    k_new = tl.load(k_ptr + head * D + d, mask=wide, other=0.0).to(tl.float32)
    v_new = tl.load(v_ptr + head * D + d, mask=wide, other=0.0).to(tl.float32)
    freed = length % W  # slot of the token that leaves, and of the new one
    seen = (c < W) & (c <= length) & (c != freed)
    target = length * 0 - 1
    k_moved = tl.zeros([BLOCK_D], tl.float32)
    v_moved = tl.zeros([BLOCK_D], tl.float32)
    if N > 0:
        position_ptr += head * N
        position = tl.load(position_ptr + c - W, mask=(c >= W) & (c < W + N), other=-1)
        if (part + 1) * BLOCK_C > W:
            leaving = (rows + freed) * D + d
            there = wide & (length >= W)
            k_moved = tl.load(cache_k_ptr + leaving, mask=there, other=0.0).to(tl.float32)
            v_moved = tl.load(cache_v_ptr + leaving, mask=there, other=0.0).to(tl.float32)
            target = _kept_slot(score_ptr + rows, position_ptr, length, W, N, sink, BLOCK_N)
        seen = (seen | (position >= 0)) & ((c != W + target) | (target < 0))
    if part == P - 1:
        tl.store(plan_ptr + 2 * head, length)
        tl.store(plan_ptr + 2 * head + 1, target)
    for r in range(R):
        row = head * R + r
        q = tl.load(q_ptr + row * D + d, mask=wide, other=0.0).to(tl.float32) * scale_log2
        scores = tl.where(seen, tl.sum(k.to(tl.float32) * q[None, :], 1), float("-inf"))
        # wherever their slots lie, one part adds them
        new = tl.where(part == 0, tl.sum(k_new * q, 0), float("-inf"))
        enters = (target >= 0) & (part == P - 1)
        moved = tl.where(enters, tl.sum(k_moved * q, 0), float("-inf"))
        top = tl.maximum(tl.maximum(tl.max(scores, 0), new), moved)
        top = tl.maximum(top, -1e38)  # finite where nothing is seen
        p = tl.exp2(scores - top)
        new, moved = tl.exp2(new - top), tl.exp2(moved - top)
        total = tl.sum(p, 0) + new + moved
        # an empty slot may hold anything
        o = tl.sum(tl.where(seen[:, None], p[:, None] * v.to(tl.float32), 0.0), 0)
        o = (o + new * v_new + moved * v_moved) / tl.maximum(total, 1e-38)
        tl.store(o_ptr + (row * P + part) * D + d, o, mask=wide)
        tl.store(lse_ptr + row * P + part, top + tl.log2(total))


@triton.jit
def _join_kernel(
    k_ptr, v_ptr, cache_k_ptr, cache_v_ptr, score_ptr, position_ptr, length_ptr,
    part_ptr, lse_ptr, plan_ptr, o_ptr, sink, H, W: tl.constexpr, N: tl.constexpr,
    P: tl.constexpr, R: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr, JOIN: tl.constexpr,
):  # fmt: skip
    """One KV head: o from its parts, and the changes of its memory."""
    head = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    wide = d < D
    p = tl.arange(0, BLOCK_P)
    length = tl.load(plan_ptr + 2 * head)
    freed = length % W
    rows = head * (W + N)
    k_new = tl.load(k_ptr + head * D + d, mask=wide)
    v_new = tl.load(v_ptr + head * D + d, mask=wide)
    if N > 0:
        target = tl.load(plan_ptr + 2 * head + 1)
        score = tl.load(score_ptr + rows + freed)
        leaving = (rows + freed) * D + d
        k_moved = tl.load(cache_k_ptr + leaving, mask=wide)
        v_moved = tl.load(cache_v_ptr + leaving, mask=wide)
    for r in range(R):
        row = head * R + r
        lse = tl.load(lse_ptr + row * P + p, mask=p < P, other=float("-inf"))
        top = tl.max(lse, 0)
        total = tl.sum(tl.exp2(lse - top), 0)
        o = tl.zeros([BLOCK_D], tl.float32)
        for start in range(0, P, JOIN):
            s = start + tl.arange(0, JOIN)
            share = tl.load(lse_ptr + row * P + s, mask=s < P, other=float("-inf"))
            at = (row * P + s)[:, None] * D + d[None, :]
            part = tl.load(part_ptr + at, mask=(s < P)[:, None] & wide[None, :], other=0.0)
            o += tl.sum(tl.exp2(share - top)[:, None] * part, 0)
        tl.store(o_ptr + row * D + d, (o / total).to(o_ptr.dtype.element_ty), mask=wide)
    if N > 0:
        enters = target >= 0
        score = tl.where(length - W < sink, float("inf"), score)
        # all of the leaving token is read before any of it is overwritten
        tl.debug_barrier()
        to = rows + W + target
        tl.store(cache_k_ptr + to * D + d, k_moved, mask=wide & enters)
        tl.store(cache_v_ptr + to * D + d, v_moved, mask=wide & enters)
        tl.store(score_ptr + to, score, mask=enters)
        tl.store(position_ptr + head * N + target, length - W, mask=enters)
        tl.store(score_ptr + rows + freed, 0.0)
    tl.store(cache_k_ptr + (rows + freed) * D + d, k_new, mask=wide)
    tl.store(cache_v_ptr + (rows + freed) * D + d, v_new, mask=wide)
    tl.store(length_ptr + head // H, length + 1, mask=head % H == 0)


def decode(
    q_BGD: torch.Tensor,
    k_BHD: torch.Tensor,
    v_BHD: torch.Tensor,
    cache: Cache,
    window: int,
    sink: int,
    scale: float,
) -> torch.Tensor:
    """See `lte_decode_step`; without gradients.

    Raises TypeError for float64 or for dtypes that differ, ValueError for a cache that is not
    contiguous and when a gradient is asked for.
    """
    _check(q_BGD, k_BHD, v_BHD, cache)
    batch, heads, slots, width = cache.k_BHCD.shape
    groups, kept = q_BGD.shape[1], cache.position_BHN.shape[2]
    q, k, v = (x.contiguous() for x in (q_BGD, k_BHD, v_BHD))
    block_d = triton.next_power_of_2(width)
    # not of the batch, so that a sequence's result does not depend on it
    block_c = min(SLOTS, TILE_BYTES // (block_d * q.element_size()))
    parts = triton.cdiv(slots, block_c)
    part_o = q.new_empty(batch, groups, parts, width, dtype=torch.float32)
    part_lse = q.new_empty(batch, groups, parts, dtype=torch.float32)
    plan = cache.length_B.new_empty(batch * heads, 2)
    o = torch.empty_like(q)
    options = {
        "H": heads, "W": window, "N": kept, "P": parts, "R": groups // heads, "D": width,
        "BLOCK_D": block_d,
    }  # fmt: skip
    with torch.cuda.device_of(q):
        _attend_kernel[(parts * batch * heads,)](
            q, k, v, *cache, part_o, part_lse, plan, scale * LOG2_E, sink, BLOCK_C=block_c,
            BLOCK_N=min(KEPT, triton.next_power_of_2(max(1, kept))), num_warps=WARPS, **options,
        )  # fmt: skip
        _join_kernel[(batch * heads,)](
            k, v, *cache, part_o, part_lse, plan, o, sink,
            BLOCK_P=triton.next_power_of_2(parts), JOIN=JOINED, **options,
        )  # fmt: skip
    return o


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: Cache) -> None:
    if q.dtype == torch.float64:
        raise TypeError("q: found float64; allowed with triton: float32, float16, bfloat16")
    data = {"k": k, "v": v, "cache.k_BHCD": cache.k_BHCD, "cache.v_BHCD": cache.v_BHCD}
    for name, x in data.items():
        if x.dtype != q.dtype:
            raise TypeError(f"{name}: found dtype {x.dtype}; allowed: q's {q.dtype}")
    for name, x in cache._asdict().items():
        # a copy would not be the caller's memory
        if not x.is_contiguous():
            raise ValueError(f"cache.{name}: found strides {x.stride()}; allowed: contiguous")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, *data.values())):
        raise ValueError("q: found inputs that require a gradient; allowed with triton: none")
