"""The constant-size state of an LTE layer, and how a segment moves it on."""

from typing import NamedTuple

import torch

from forgetmenot_kernels.lte_attention import FOREVER, Columns


class State(NamedTuple):
    """Kept slots (per head), the window, the scorer's context, and the tokens seen.

    Keys are rotated by their own position once and for all; the context [k; v] is not. Window
    logits of the last `margin` tokens are provisional: their right context has not come yet.
    """

    kept_k_BNHD: torch.Tensor
    kept_v_BNHD: torch.Tensor
    kept_position_BNH: torch.Tensor
    kept_logit_BNH: torch.Tensor
    window_k_BWHD: torch.Tensor
    window_v_BWHD: torch.Tensor
    window_position_BW: torch.Tensor
    window_logit_BWH: torch.Tensor
    context_BMHE: torch.Tensor
    context_position_BM: torch.Tensor
    length_B: torch.Tensor


def empty_state(like_BLHD: torch.Tensor, slots: int) -> State:
    """The state before any token, with `slots` empty kept slots a head (position -1)."""
    batch, _, heads, width = like_BLHD.shape
    kept = like_BLHD.new_zeros(batch, slots, heads, width)
    none = like_BLHD.new_zeros(batch, 0, heads, width)
    position = torch.full((batch, slots, heads), -1, device=like_BLHD.device)
    no_position = position.new_zeros(batch, 0)
    return State(
        kept_k_BNHD=kept,
        kept_v_BNHD=kept,
        kept_position_BNH=position,
        kept_logit_BNH=kept[..., 0],
        window_k_BWHD=none,
        window_v_BWHD=none,
        window_position_BW=no_position,
        window_logit_BWH=none[..., 0],
        context_BMHE=none.new_zeros(batch, 0, heads, 2 * width),
        context_position_BM=no_position,
        length_B=position.new_zeros(batch),
    )


def advance(
    columns: Columns,
    logit_BCH: torch.Tensor,
    pairs_BTHE: torch.Tensor,
    pairs_position_BT: torch.Tensor,
    length_B: torch.Tensor,
    *,
    held: int,
    window: int,
    context: int,
    slots: int | None,
) -> State:
    """The state after a segment: the last `window` tokens, and the kept ones before them.

    The first `held` columns are the kept slots of before; the others are consecutive tokens.
    `slots` is the number of kept slots of a head; None makes as many as the fullest head needs.
    """
    count = columns.k_BCHD.shape[1]
    old = count - min(window, count - held)
    assert columns.visible_until_BCH is not None
    alive = columns.visible_until_BCH[:, :old] == FOREVER
    alive &= columns.position_BCH[:, :old] >= 0
    if slots is None:
        slots = int(alive.sum(1).max()) if old else 0
    # stable: kept entries stay in the order of their positions, empty slots come last
    order = alive.long().argsort(dim=1, descending=True, stable=True)[:, :slots]
    filled = alive.gather(1, order)

    def pick(x: torch.Tensor, empty: float) -> torch.Tensor:
        wide = x.dim() == 4
        index = order[..., None].expand(-1, -1, -1, x.shape[-1]) if wide else order
        picked = x[:, :old].gather(1, index)
        picked = picked.masked_fill(~(filled[..., None] if wide else filled), empty)
        missing = picked.new_full((x.shape[0], slots - order.shape[1], *x.shape[2:]), empty)
        return torch.cat((picked, missing), 1)

    first = max(0, pairs_BTHE.shape[1] - context)
    return State(
        kept_k_BNHD=pick(columns.k_BCHD, 0),
        kept_v_BNHD=pick(columns.v_BCHD, 0),
        kept_position_BNH=pick(columns.position_BCH, -1),
        kept_logit_BNH=pick(logit_BCH, 0),
        window_k_BWHD=columns.k_BCHD[:, old:],
        window_v_BWHD=columns.v_BCHD[:, old:],
        window_position_BW=columns.position_BCH[:, old:, 0],
        window_logit_BWH=logit_BCH[:, old:],
        context_BMHE=pairs_BTHE[:, first:],
        context_position_BM=pairs_position_BT[:, first:],
        length_B=length_B,
    )
