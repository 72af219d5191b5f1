"""LTE attention in PyTorch: the visibility rule, dense attention under it, and the streaming top-b.

Shape suffixes: B batch, T queries, C columns, N held entries, H KV heads, G query heads, D width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

FOREVER = 2**62


class Slots(NamedTuple):
    """Entries of the kept buffer, per head; position -1 marks an empty slot."""

    score_BNH: torch.Tensor
    position_BNH: torch.Tensor


def visible(
    position_BT: torch.Tensor,
    position_BCH: torch.Tensor,
    visible_until_BCH: torch.Tensor | None,
    window: int | None,
    sink: int,
) -> torch.Tensor:
    """The mask [B, H, T, C]. Padding queries see padding columns only, so no row is empty."""
    i = position_BT[:, None, :, None]
    j = position_BCH.permute(0, 2, 1)[:, :, None, :]
    mask = (j <= i) & ((j >= 0) | (i < 0))
    if window is None:
        return mask
    near = (i - j < window) | (j < sink)
    if visible_until_BCH is not None:
        near = near | (i < visible_until_BCH.permute(0, 2, 1)[:, :, None, :])
    return mask & near


def dense_attention(
    q_BTGD: torch.Tensor,
    k_BCHD: torch.Tensor,
    v_BCHD: torch.Tensor,
    position_BCH: torch.Tensor,
    visible_until_BCH: torch.Tensor | None,
    position_BT: torch.Tensor,
    window: int | None,
    sink: int,
    scale: float,
) -> torch.Tensor:
    """PyTorch's attention under the mask: O(T C), fast on CPUs at the lengths used there."""
    groups = q_BTGD.shape[2] // k_BCHD.shape[2]
    mask = visible(position_BT, position_BCH, visible_until_BCH, window, sink)
    if mask.shape[1] > 1:
        mask = mask.repeat_interleave(groups, 1)
    q, k, v = (x.transpose(1, 2) for x in (q_BTGD, k_BCHD, v_BCHD))
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)


def looped_attention(
    q_BTGD: torch.Tensor,
    k_BCHD: torch.Tensor,
    v_BCHD: torch.Tensor,
    position_BCH: torch.Tensor,
    visible_until_BCH: torch.Tensor | None,
    position_BT: torch.Tensor,
    window: int | None,
    sink: int,
    scale: float,
) -> torch.Tensor:
    """One query and head at a time over the columns it sees: the oracle of the tests."""
    batch, time, heads, _ = q_BTGD.shape
    kv_heads = k_BCHD.shape[2]
    position_BCH = position_BCH.expand(-1, -1, kv_heads)
    rows = []
    for b in range(batch):
        for t in range(time):
            i = int(position_BT[b, t])
            for g in range(heads):
                h = g * kv_heads // heads
                seen = []
                for c, j in enumerate(position_BCH[b, :, h].tolist()):
                    until = 0 if visible_until_BCH is None else int(visible_until_BCH[b, c, h])
                    near = window is None or i - j < window or j < sink or i < until
                    if j <= i and (j >= 0 or i < 0) and near:
                        seen.append(c)
                weight = (k_BCHD[b, seen, h] @ q_BTGD[b, t, g] * scale).softmax(0)
                rows.append(weight @ v_BCHD[b, seen, h])
    return torch.stack(rows).unflatten(0, (batch, time, heads))


def streaming_cap(
    score_BCH: torch.Tensor,
    position_BC: torch.Tensor,
    queries: int,
    window: int,
    sink: int,
    budget: int | None,
    held: Slots,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `lte_streaming_cap`. One step a query when there is a cap, none without."""
    position_BC1 = position_BC[..., None]
    is_sink = (position_BC1 >= 0) & (position_BC1 < sink)
    wanted = ((score_BCH > 0) | is_sink) & (position_BC1 >= 0)
    until_held = torch.full_like(held.position_BNH, FOREVER)
    until = torch.where(wanted, FOREVER, torch.zeros_like(position_BC1))
    if budget is None:
        return until, until_held
    if budget == 0:
        return torch.zeros_like(until), until_held
    batch, count, heads = score_BCH.shape
    old = held.position_BNH.shape[1]
    # all entries by one index: the held ones first, then the columns
    score = torch.cat((held.score_BNH, score_BCH.detach()), 1).masked_fill(
        torch.cat((held.position_BNH, position_BC1.expand(-1, -1, heads)), 1) < 0, -torch.inf
    )
    score[:, old:].masked_fill_(is_sink, torch.inf)
    score[:, :old].masked_fill_((held.position_BNH >= 0) & (held.position_BNH < sink), torch.inf)
    until = torch.cat((until_held, until), 1).movedim(1, 2).contiguous()
    score = score.movedim(1, 2).contiguous()  # [B, H, N + C]
    wanted = wanted.movedim(1, 2)

    slot_index = torch.full((batch, heads, budget), -1, device=score.device)
    slot_index[..., :old] = torch.arange(old, device=score.device)
    slot_score = torch.full((batch, heads, budget), -torch.inf, dtype=score.dtype).to(score.device)
    slot_score[..., :old] = score[..., :old]
    first = count - queries
    for t in range(max(0, window - first), queries):
        column = first + t - window  # leaves the window as query t arrives
        candidate = score[..., old + column]
        lowest = slot_score.amin(-1, keepdim=True)
        # the index grows with the position, so the largest index among equals is the newest
        slot = slot_index.masked_fill(slot_score > lowest, -2).argmax(-1, keepdim=True)
        enters = wanted[..., column] & (candidate > lowest[..., 0])
        leaver = slot_index.gather(-1, slot)
        evicted = enters[..., None] & (leaver >= 0) & (lowest > -torch.inf)
        i_B = position_BC[:, first + t].view(-1, 1, 1)
        target = leaver.clamp(min=0)
        until.scatter_(-1, target, torch.where(evicted, i_B, until.gather(-1, target)))
        # a column that never enters is seen from the window alone
        until[..., old + column] = torch.where(enters, until[..., old + column], 0)
        kept_score, kept_index = slot_score.gather(-1, slot), slot_index.gather(-1, slot)
        new_score, new_index = candidate[..., None], torch.full_like(kept_index, old + column)
        slot_score.scatter_(-1, slot, torch.where(enters[..., None], new_score, kept_score))
        slot_index.scatter_(-1, slot, torch.where(enters[..., None], new_index, kept_index))
    until = until.movedim(2, 1)
    return until[:, old:], until[:, :old]
