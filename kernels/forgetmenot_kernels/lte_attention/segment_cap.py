"""The streaming top-b of a segment that continues sequences, as that of whole sequences.

What a head holds, then the window's tokens, then the segment's make a sequence in which the same
columns leave the window before the same queries: the held ones fill the buffer before the first
query comes. So one call for whole sequences does what `streaming_cap` does in a step a query.
Suffixes as in `streaming_cap`.
"""

from collections.abc import Callable

import torch

from forgetmenot_kernels.lte_attention.reference import FOREVER
from forgetmenot_kernels.lte_attention.streaming_cap import Slots


def segment_cap(
    whole: Callable[[torch.Tensor], torch.Tensor],
    score_BCH: torch.Tensor,
    position_BC: torch.Tensor,
    sink: int,
    held: Slots,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `streaming_cap`, of columns of which exactly W stand before the queries.

    `whole` gives visible_until of whole sequences from their scores [B, T, H], without sinks: those
    here have an infinite score, which no newcomer beats.
    """
    # In the order of time, as the newest of equal scores goes; empty slots come first, unwanted.
    order_BNH = held.position_BNH.argsort(1)
    position_BNH = held.position_BNH.gather(1, order_BNH)
    heads = score_BCH.shape[2]
    position = torch.cat((position_BNH, position_BC[..., None].expand(-1, -1, heads)), 1)
    score = torch.cat((held.score_BNH.gather(1, order_BNH), score_BCH.detach()), 1)
    score = score.masked_fill(position < sink, torch.inf).masked_fill(position < 0, -torch.inf)
    until = whole(score)
    total, old = score.shape[1], position_BNH.shape[1]
    # An evicted entry's place counts in this sequence; the query there has its own position.
    query_at = position.gather(1, until.long().clamp(max=total - 1)).int()
    until = torch.where((until > 0) & (until < total), query_at, (until > 0).int() * FOREVER)
    until_held = until[:, :old].masked_fill(position_BNH < 0, FOREVER)
    return until[:, old:], torch.empty_like(until_held).scatter_(1, order_BNH, until_held)
