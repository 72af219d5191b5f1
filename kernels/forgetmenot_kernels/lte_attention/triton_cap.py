# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The streaming top-b on the GPU: one program walks over the leaving columns of one head.

The buffer lives in registers. Columns are read a block at a time, and the program jumps from one
column that beats the buffer's lowest score to the next, so that time follows the number of entries
into the buffer and not the number of columns.
"""

import torch
import triton
import triton.language as tl

from forgetmenot_kernels.lte_attention.reference import FOREVER


@triton.jit(do_not_specialize=["T", "window", "sink", "budget"])
def _cap_kernel(
    score_ptr, until_ptr, borders_ptr, T, window, sink, budget, FOREVER: tl.constexpr,
    H: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) // H
    head = tl.program_id(0) % H
    first = tl.load(borders_ptr + row)  # row of tokens, over all of the batch
    past = tl.load(borders_ptr + row + 1)
    score_ptr += first * H + head
    until_ptr += first * H + head
    leaving = (past - first).to(tl.int32) - window

    slot = tl.arange(0, SLOTS)
    # slots beyond the budget are never the lowest
    held_score = tl.where(slot < budget, float("-inf"), float("inf"))
    held = tl.full([SLOTS], -1, tl.int32)
    lowest = float("-inf")
    filled = 0
    for start in range(0, leaving, BLOCK):
        j = start + tl.arange(0, BLOCK)
        score = tl.load(score_ptr + j.to(tl.int64) * H, mask=j < leaving, other=0.0).to(tl.float32)
        score = tl.where((j < sink) & (j < leaving), float("inf"), score)
        # NaN is not wanted
        score = tl.where(score > 0, score, float("-inf"))
        column = tl.min(tl.where(score > lowest, j, leaving), 0)
        while column < leaving:
            candidate = tl.max(tl.where(j == column, score, float("-inf")), 0)
            leaver = tl.max(tl.where(held_score == lowest, held, -1), 0)
            if filled < budget:
                place = filled
                filled += 1
            else:
                place = tl.max(tl.where(held == leaver, slot, -1), 0)
                tl.store(until_ptr + leaver.to(tl.int64) * H, column + window)
            held_score = tl.where(slot == place, candidate, held_score)
            held = tl.where(slot == place, column, held)
            lowest = tl.min(held_score, 0)
            column = tl.min(tl.where((score > lowest) & (j > column), j, leaving), 0)
    # every column is written at most once: when it is evicted, or here
    tl.store(until_ptr + held.to(tl.int64) * H, FOREVER, mask=held >= 0)


def streaming_cap(
    score_BTH: torch.Tensor,
    window: int,
    sink: int,
    budget: int | None,
    cu_seqlens: torch.Tensor | None,
) -> torch.Tensor:
    """First query that no longer sees each column outside the window; see `lte_streaming_cap`.

    Args:
        score_BTH: float32, float16 or bfloat16; positive = keep.
        window, sink, budget: W, number of sinks, b (None = no cap).
        cu_seqlens: borders of documents in a row (batch 1), on the scores' device.

    Returns:
        int32 [B, T, H], counted in the token's document: 0 = never kept, FOREVER = never evicted.
    """
    batch, time, heads = score_BTH.shape
    device = score_BTH.device
    borders = torch.arange(batch + 1, device=device) * time
    tokens = torch.arange(batch * time, device=device).view(batch, time, 1)
    if cu_seqlens is not None:
        borders = cu_seqlens.long()
    row_BT1 = torch.searchsorted(borders, tokens, right=True)
    begin_BT1, end_BT1 = borders[row_BT1 - 1], borders[row_BT1]
    wanted = (score_BTH > 0) | (tokens - begin_BT1 < sink)
    if budget is None:
        return wanted.int() * FOREVER
    # what never leaves the window is not the kernel's
    until_BTH = (wanted & (tokens >= end_BT1 - window) & (budget > 0)).int() * FOREVER
    if budget > 0:
        _cap_kernel[((len(borders) - 1) * heads,)](
            score_BTH.detach().contiguous(), until_BTH, borders, time, window, sink, budget,
            FOREVER=FOREVER, H=heads, SLOTS=triton.next_power_of_2(budget), BLOCK=128, num_warps=1,
        )  # fmt: skip
    return until_BTH
