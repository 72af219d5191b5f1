# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""One token a sequence through Triton, the cache changed in place, without waiting for the device.

Each branch is cut into parts that programs attend on their own: BN pooled blocks, BN tokens of a
chosen block, BN tokens of the window. A part leaves its sum of values, the largest score (base 2)
and the sum of weights of each head; the last kernel joins the parts under the gates.
"""

import torch
import triton
import triton.language as tl

from forgetmenot_kernels.lte_attention.triton_forward import load_rows
from forgetmenot_kernels.nsa.cache import Cache
from forgetmenot_kernels.nsa.triton_choose import choice

LOG2_E = 1.4426950408889634


@triton.jit
def _attend(
    q_ptr, head, part, k, v, seen, acc_ptr, top_ptr, total_ptr, scale_log2,
    R: tl.constexpr, RP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Attention of a group to the columns `seen` [BN] of float32 k and v; returns the scores."""
    r = tl.arange(0, RP)
    d = tl.arange(0, BLOCK_D)
    q = load_rows(q_ptr + head.to(tl.int64) * R * D, tl.minimum(r, R - 1), D, D, BLOCK_D)
    scores = tl.dot(q.to(tl.float32), tl.trans(k), input_precision="ieee") * scale_log2
    scores = tl.where(seen[None, :], scores, float("-inf"))
    top = tl.maximum(tl.max(scores, 1), -1e38)
    weight = tl.exp2(scores - top[:, None])
    acc = tl.dot(weight, v, input_precision="ieee")
    row = (head.to(tl.int64) * PARTS + part) * R + r
    tl.store(top_ptr + row, top, mask=r < R)
    tl.store(total_ptr + row, tl.sum(weight, 1), mask=r < R)
    stored = (r < R)[:, None] & (d < D)[None, :]
    tl.store(acc_ptr + row[:, None] * D + d[None, :], acc, mask=stored)
    return scores


@triton.jit
def score_kernel(
    q_ptr, new_k_ptr, new_v_ptr, k_ptr, v_ptr, pooled_k_ptr, pooled_v_ptr, length_ptr,
    score_ptr, acc_ptr, top_ptr, total_ptr, scale_log2, C,
    k_batch, k_head, k_row, v_batch, v_head, v_row,
    H: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    P: tl.constexpr, BLOCK: tl.constexpr, BN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program BN pooled blocks and KV head: takes in the new token, attends, keeps scores."""
    head = tl.program_id(0)
    batch = (head // H).to(tl.int64)
    part = tl.program_id(1)
    length = tl.load(length_ptr + batch).to(tl.int32)
    p = part * BN + tl.arange(0, BN)
    d = tl.arange(0, BLOCK_D)
    new_k = tl.load(new_k_ptr + head.to(tl.int64) * D + d, mask=d < D, other=0.0)
    new_v = tl.load(new_v_ptr + head.to(tl.int64) * D + d, mask=d < D, other=0.0)
    grows = (p == length // BLOCK)[:, None]
    at = head.to(tl.int64) * P * D + p[:, None] * D + d[None, :]
    used = (p <= length // BLOCK)[:, None] & (p < P)[:, None] & (d < D)[None, :]
    k = tl.load(pooled_k_ptr + at, mask=used, other=0.0)
    v = tl.load(pooled_v_ptr + at, mask=used, other=0.0)
    k += tl.where(grows, new_k.to(tl.float32)[None, :] / BLOCK, 0.0)
    v += tl.where(grows, new_v.to(tl.float32)[None, :] / BLOCK, 0.0)
    written = used & grows & (length < C)
    tl.store(pooled_k_ptr + at, k, mask=written)
    tl.store(pooled_v_ptr + at, v, mask=written)
    mine = (d < D) & (length // BLOCK // BN == part) & (length < C)
    at_k = batch * k_batch + head % H * k_head + length.to(tl.int64) * k_row + d
    tl.store(k_ptr + at_k, new_k.to(k_ptr.dtype.element_ty), mask=mine)
    at_v = batch * v_batch + head % H * v_head + length.to(tl.int64) * v_row + d
    tl.store(v_ptr + at_v, new_v.to(v_ptr.dtype.element_ty), mask=mine)
    scores = _attend(
        q_ptr, head, part, k, v, p < (length + 1) // BLOCK, acc_ptr, top_ptr, total_ptr,
        scale_log2, R, RP, D, BLOCK_D, PARTS,
    )  # fmt: skip
    r = tl.arange(0, RP)
    at = (head.to(tl.int64) * R + r)[:, None] * P + p[None, :]
    tl.store(score_ptr + at, scores, mask=(r < R)[:, None] & (p < P)[None, :])


@triton.jit
def choose_kernel(
    score_ptr, top_ptr, total_ptr, length_ptr, block_ptr,
    H: tl.constexpr, R: tl.constexpr, P: tl.constexpr, BP: tl.constexpr, POOLED: tl.constexpr,
    BC: tl.constexpr, BLOCK: tl.constexpr, S: tl.constexpr, BS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program a KV head: its chosen blocks, then -1."""
    head = tl.program_id(0).to(tl.int64)
    i = tl.load(length_ptr + head // H).to(tl.int32)
    p = tl.arange(0, BP)
    part = tl.arange(0, BC)
    importance = tl.zeros([BP], tl.float32)
    for r in range(0, R):
        at = (head * PARTS + part) * R + r
        tops = tl.load(top_ptr + at, mask=part < POOLED, other=-1e38)
        totals = tl.load(total_ptr + at, mask=part < POOLED, other=0.0)
        top = tl.max(tops, 0)
        total = tl.sum(totals * tl.exp2(tops - top), 0)
        at = (head * R + r) * P + p
        score = tl.load(score_ptr + at, mask=p < i // BLOCK, other=float("-inf"))
        importance += tl.exp2(score - top) / tl.where(total > 0, total, 1.0)
    position = tl.zeros([1], tl.int32) + i
    chosen = choice(importance[None, :], p, position, BLOCK, S) & (p < P)[None, :]
    chosen = tl.reshape(chosen.to(tl.int32), [BP])
    tl.store(block_ptr + head * S + tl.cumsum(chosen, 0) - 1, p, mask=chosen > 0)
    s = tl.arange(0, BS)
    tl.store(block_ptr + head * S + s, -1, mask=(s >= tl.sum(chosen, 0)) & (s < S))


@triton.jit
def attend_kernel(
    q_ptr, k_ptr, v_ptr, length_ptr, block_ptr, acc_ptr, top_ptr, total_ptr, scale_log2, C,
    k_batch, k_head, k_row, v_batch, v_head, v_row,
    H: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr, S: tl.constexpr, WINDOW: tl.constexpr, BN: tl.constexpr,
    POOLED: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program BN tokens of a chosen block or of the window, and KV head."""
    turns: tl.constexpr = (BLOCK + BN - 1) // BN
    head = tl.program_id(0)
    batch = (head // H).to(tl.int64)
    part = tl.program_id(1)
    i = tl.load(length_ptr + batch).to(tl.int32)
    if part < S * turns:
        block = tl.load(block_ptr + head.to(tl.int64) * S + part // turns)
        start = block * BLOCK + part % turns * BN
        past = tl.where(block < 0, start, tl.minimum(block * BLOCK + BLOCK, i + 1))
    else:
        start = tl.maximum(i + 1 - WINDOW, 0) + (part - S * turns) * BN
        past = i + 1
    j = start + tl.arange(0, BN)
    d = tl.arange(0, BLOCK_D)
    seen = (j < past) & (j < C)
    inside = seen[:, None] & (d < D)[None, :]
    at = batch * k_batch + head % H * k_head + j.to(tl.int64)[:, None] * k_row + d[None, :]
    k = tl.load(k_ptr + at, mask=inside, other=0.0).to(tl.float32)
    at = batch * v_batch + head % H * v_head + j.to(tl.int64)[:, None] * v_row + d[None, :]
    # no room for the token: nothing was written, which must not go unnoticed
    v = tl.load(v_ptr + at, mask=inside, other=0.0).to(tl.float32)
    v = tl.where(i < C, v, float("nan"))
    _attend(
        q_ptr, head, POOLED + part, k, v, seen, acc_ptr, top_ptr, total_ptr, scale_log2,
        R, RP, D, BLOCK_D, PARTS,
    )  # fmt: skip


@triton.jit
def mix_kernel(
    acc_ptr, top_ptr, total_ptr, gate_ptr, length_ptr, o_ptr,
    H: tl.constexpr, R: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    POOLED: tl.constexpr, CHOSEN: tl.constexpr, PARTS: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """One program a query head and BLOCK_D columns: o; the first of a sequence counts its token."""
    head_q = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, BP)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    row = (head_q // R * PARTS + part) * R + head_q % R
    top = tl.load(top_ptr + row, mask=part < PARTS, other=-1e38)
    total = tl.load(total_ptr + row, mask=part < PARTS, other=0.0)
    branch = (part >= POOLED).to(tl.int32) + (part >= POOLED + CHOSEN).to(tl.int32)
    share = tl.zeros([BP], tl.float32)
    for b in range(0, 3):
        of_branch = branch == b
        highest = tl.max(tl.where(of_branch, top, -1e38), 0)
        weight = tl.where(of_branch, tl.exp2(top - highest), 0.0)
        whole = tl.sum(weight * total, 0)
        gate = tl.load(gate_ptr + head_q * 3 + b).to(tl.float32)
        share += weight * gate / tl.where(whole > 0, whole, 1.0)
    inside = (part < PARTS)[:, None] & (d < D)[None, :]
    acc = tl.load(acc_ptr + row[:, None] * D + d[None, :], mask=inside, other=0.0)
    o = tl.sum(acc * share[:, None], 0)
    tl.store(o_ptr + head_q * D + d, o.to(o_ptr.dtype.element_ty), mask=d < D)
    if (head_q % (H * R) == 0) & (tl.program_id(1) == 0):
        at = length_ptr + head_q // (H * R)
        tl.store(at, tl.load(at) + 1)


def step(
    q_BGD: torch.Tensor,
    k_BHD: torch.Tensor,
    v_BHD: torch.Tensor,
    gate_BG3: torch.Tensor,
    cache: Cache,
    block: int,
    selected: int,
    window: int,
    scale: float,
) -> torch.Tensor:
    """As the public `nsa_decode_step`, for arguments it has checked; may be captured as a graph.

    Raises TypeError or ValueError for caches other than float32 or narrower beside float32 means,
    and for layouts in which a key's numbers or the means do not lie together.
    """
    batch, heads, capacity, width = cache.k_BHCD.shape
    pooled = cache.pooled_k_BHPD.shape[2]
    for name in ("pooled_k_BHPD", "pooled_v_BHPD"):
        x = getattr(cache, name)
        if x.dtype != torch.float32:
            raise TypeError(f"cache.{name}: found {x.dtype}; allowed with triton: float32")
        if not x.is_contiguous():
            raise ValueError(f"cache.{name}: found strides {x.stride()}; allowed: contiguous")
    for name in ("k_BHCD", "v_BHCD"):
        x = getattr(cache, name)
        if x.stride(3) != 1:
            raise ValueError(f"cache.{name}: found strides {x.stride()}; allowed: last is 1")
    q, k, v, gate = (x.contiguous() for x in (q_BGD, k_BHD, v_BHD, gate_BG3))
    group = q.shape[1] // heads
    window, selected = min(window, capacity), min(selected, pooled)
    BN = min(64, max(16, int(triton.next_power_of_2(block))))
    pooled_parts = triton.cdiv(pooled, 64)
    chosen_parts = selected * triton.cdiv(block, BN)
    parts = pooled_parts + chosen_parts + triton.cdiv(window, BN)

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=q.device)

    top, total = (empty(batch, heads, parts, group) for _ in range(2))
    acc = empty(batch, heads, parts, group, width)
    score = empty(batch, heads, group, pooled)
    blocks = torch.empty((batch, heads, selected), dtype=torch.int32, device=q.device)
    o = torch.empty_like(q, dtype=v.dtype)
    strides = (*cache.k_BHCD.stride()[:3], *cache.v_BHCD.stride()[:3])
    constants = {
        "H": heads, "R": group, "RP": max(16, int(triton.next_power_of_2(group))), "D": width,
        "BLOCK_D": max(16, int(triton.next_power_of_2(width))), "BLOCK": block, "PARTS": parts,
        "num_warps": 4 if width <= 64 else 8,
    }  # fmt: skip
    with torch.cuda.device_of(q):
        score_kernel[(batch * heads, pooled_parts)](
            q, k, v, *cache, score, acc, top, total, scale * LOG2_E, capacity, *strides,
            P=pooled, BN=64, **constants,
        )  # fmt: skip
        choose_kernel[(batch * heads,)](
            score, top, total, cache.length_B, blocks, H=heads, R=group, P=pooled,
            BP=triton.next_power_of_2(pooled), POOLED=pooled_parts,
            BC=triton.next_power_of_2(pooled_parts), BLOCK=block, S=selected,
            BS=triton.next_power_of_2(selected), PARTS=parts,
        )  # fmt: skip
        attend_kernel[(batch * heads, parts - pooled_parts)](
            q, cache.k_BHCD, cache.v_BHCD, cache.length_B, blocks, acc, top, total,
            scale * LOG2_E, capacity, *strides, S=selected, WINDOW=window, BN=BN,
            POOLED=pooled_parts, **constants,
        )  # fmt: skip
        mix_kernel[(batch * heads * group, triton.cdiv(width, 64))](
            acc, top, total, gate, cache.length_B, o, H=heads, R=group, D=width, BLOCK_D=64,
            POOLED=pooled_parts, CHOSEN=chosen_parts, PARTS=parts,
            BP=triton.next_power_of_2(parts),
        )  # fmt: skip
    return o
