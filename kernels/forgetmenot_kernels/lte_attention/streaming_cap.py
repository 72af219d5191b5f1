"""The streaming top-b of LTE: which columns outlive the window, and until when.

Shape suffixes: B batch, C columns, N held entries, H KV heads.
"""

from typing import NamedTuple

import torch

from forgetmenot_kernels.lte_attention.reference import FOREVER


class Slots(NamedTuple):
    """Entries of the kept buffer, per head; position -1 marks an empty slot."""

    score_BNH: torch.Tensor
    position_BNH: torch.Tensor


def streaming_cap(
    score_BCH: torch.Tensor,
    position_BC: torch.Tensor,
    queries: int,
    window: int,
    sink: int,
    budget: int | None,
    held: Slots,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which queries see each column beyond the window, in a segment that continues a sequence.

    The columns are consecutive tokens of which the last `queries` are the queries themselves; a
    step a query when there is a cap, none without (see `lte_streaming_cap` for the rule).

    Args:
        score_BCH: scores; positive = keep.
        position_BC: int64 positions, -1 for what is no token.
        queries: number of queries among the columns.
        window, sink, budget: W, number of sinks, b (None = no cap, as in training).
        held: what the sequence holds from before.

    Returns:
        visible_until of the columns [B, C, H] and of the held entries [B, N, H], int32.
    """
    position_BC1 = position_BC[..., None]
    is_sink = (position_BC1 >= 0) & (position_BC1 < sink)
    wanted = ((score_BCH > 0) | is_sink) & (position_BC1 >= 0)
    until_held = torch.full_like(held.position_BNH, FOREVER, dtype=torch.int32)
    until = wanted.int() * FOREVER
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

    # what each slot holds: index among all entries, position (-1 = empty) and score
    shape = (batch, heads, budget)
    slot_index = torch.zeros(shape, dtype=torch.int64, device=score.device)
    slot_position = torch.full_like(slot_index, -1)
    slot_score = torch.full(shape, -torch.inf, dtype=score.dtype, device=score.device)
    slot_index[..., :old] = torch.arange(old, device=score.device)
    slot_position[..., :old] = held.position_BNH.movedim(1, 2)
    slot_score[..., :old] = score[..., :old]
    first = count - queries
    for t in range(max(0, window - first), queries):
        column = first + t - window  # leaves the window as query t arrives
        candidate = score[..., old + column, None]
        lowest = slot_score.amin(-1, keepdim=True)
        slot = slot_position.masked_fill(slot_score > lowest, -2).argmax(-1, keepdim=True)
        enters = wanted[..., column, None] & (candidate > lowest)
        leaver = slot_index.gather(-1, slot)
        evicted = enters & (slot_position.gather(-1, slot) >= 0)
        i_B = position_BC[:, first + t].int().view(-1, 1, 1)
        until.scatter_(-1, leaver, torch.where(evicted, i_B, until.gather(-1, leaver)))
        # a column that never enters is seen from the window alone
        until[..., old + column, None] = enters.int() * FOREVER
        left = position_BC[:, column].view(-1, 1, 1).expand_as(slot)
        for slots, new in (
            (slot_score, candidate),
            (slot_index, torch.full_like(slot, old + column)),
            (slot_position, left),
        ):
            slots.scatter_(-1, slot, torch.where(enters, new, slots.gather(-1, slot)))
    until = until.movedim(2, 1)
    return until[:, old:], until[:, :old]
