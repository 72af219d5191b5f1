"""The constant-size memory of attention with a window and kept tokens.

Shape suffixes: B batch, C = W + N slots, W slots of the window, N kept slots, T tokens in the order
of time, H KV heads, D width.
"""

from typing import NamedTuple

import torch

from forgetmenot_kernels.lte_attention.streaming_cap import Slots


class Cache(NamedTuple):
    """Keys, values and scores in slots; every sequence of the batch has its own length.

    Slot p % W holds the window's token at position p; kept tokens are in the slots from W on. Keys
    are stored as they are attended to (rotated by their own position). Scores are float32 whatever
    the data, or float64 beside float64 data.
    """

    k_BHCD: torch.Tensor
    v_BHCD: torch.Tensor
    score_BHC: torch.Tensor  # kept slots: +inf sinks, -inf empty; [B, H, 0] without kept slots
    position_BHN: torch.Tensor  # int64, -1 = empty slot
    length_B: torch.Tensor  # int64, tokens seen

    @property
    def window(self) -> int:
        """W."""
        return self.k_BHCD.shape[2] - self.position_BHN.shape[2]

    @property
    def held(self) -> Slots:
        """What the kept slots hold, as the streaming cap takes it."""
        return Slots(self.score_BHC[..., self.window :].mT, self.position_BHN.mT)


class Tokens(NamedTuple):
    """Consecutive tokens; sequence b's token at position p is at index p + `offset_B[b]`."""

    k_BTHD: torch.Tensor
    v_BTHD: torch.Tensor
    score_BTH: torch.Tensor
    offset_B: torch.Tensor

    @property
    def position_BT(self) -> torch.Tensor:
        """Position of each token; negative before the start."""
        index = torch.arange(self.k_BTHD.shape[1], device=self.offset_B.device)
        return index - self.offset_B[:, None]

    def extended(self, k: torch.Tensor, v: torch.Tensor, score: torch.Tensor) -> "Tokens":
        """These tokens and the ones after them."""
        return Tokens(
            torch.cat((self.k_BTHD, k), 1),
            torch.cat((self.v_BTHD, v), 1),
            torch.cat((self.score_BTH, score), 1),
            self.offset_B,
        )


def scores_dtype(like: torch.Tensor) -> torch.dtype:
    """The dtype of scores beside data like this."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def empty_cache(like_BTHD: torch.Tensor, window: int, slots: int) -> Cache:
    """The memory before any token, for keys and values shaped [B, T, H, D]."""
    batch, _, heads, width = like_BTHD.shape
    kv = like_BTHD.new_zeros(batch, heads, window + slots, width)
    score = kv.new_zeros(batch, heads, window + slots if slots else 0, dtype=scores_dtype(kv))
    score[..., window:] = -torch.inf
    position = torch.full((batch, heads, slots), -1, device=like_BTHD.device)
    return Cache(kv, kv.clone(), score, position, position.new_zeros(batch))


def ring(
    x_BT: torch.Tensor, offset_B: torch.Tensor, length_B: torch.Tensor, size: int
) -> torch.Tensor:
    """The last `size` of `length_B` tokens as a ring [B, size, ...]: position p in slot p % size.

    Sequence b's token at position p is `x_BT[b, p + offset_B[b]]`; slots before the start are zero.
    """
    last_B1 = length_B[:, None] - 1
    position_BS = last_B1 - (last_B1 - torch.arange(size, device=length_B.device)) % size
    rows = torch.arange(len(length_B), device=length_B.device)[:, None]
    found = x_BT[rows, (position_BS + offset_B[:, None]).clamp(min=0)]
    empty_BS = position_BS < 0
    return found.masked_fill(empty_BS.view(*empty_BS.shape, *[1] * (x_BT.dim() - 2)), 0)


def unrolled(ring_BS: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
    """A ring [B, S, ...] of tokens in the order of time, the newest last."""
    size = ring_BS.shape[1]
    slot_BS = (length_B[:, None] + torch.arange(size, device=length_B.device)) % size
    return ring_BS[torch.arange(len(length_B), device=length_B.device)[:, None], slot_BS]


def window_tokens(cache: Cache) -> Tokens:
    """A copy of the window's W tokens, oldest first."""
    window = cache.window
    k, v = (
        unrolled(x[:, :, :window].movedim(1, 2), cache.length_B)
        for x in (cache.k_BHCD, cache.v_BHCD)
    )
    score = k.new_zeros(k.shape[:3], dtype=cache.score_BHC.dtype)
    if cache.score_BHC.shape[2]:
        score = unrolled(cache.score_BHC[..., :window].mT, cache.length_B)
    return Tokens(k, v, score, window - cache.length_B)


def refill(
    before: Cache,
    until_before_BNH: torch.Tensor,
    tokens: Tokens,
    until_BTH: torch.Tensor,
    length_B: torch.Tensor,
    *,
    sink: int,
    slots: int | None,
) -> Cache:
    """The memory after a segment, in new tensors.

    Args:
        before: the memory before; only its kept slots are read.
        until_before_BNH: first query that no longer sees each of them.
        tokens: the window's tokens of before, if there are any, and the segment's.
        until_BTH: first query that no longer sees each token outside the window.
        length_B: tokens seen, the segment included.
        sink: number of first tokens that are never evicted.
        slots: kept slots of a head; None = what the fullest head needs (waits for the device).
    """
    window, old = before.window, before.held
    offset_B = tokens.offset_B
    data = (tokens.k_BTHD, tokens.v_BTHD, tokens.score_BTH.to(old.score_BNH.dtype))
    near = [ring(x, offset_B, length_B, window) for x in data]

    position_BT1 = tokens.position_BT[..., None]
    end_B11 = length_B[:, None, None]
    alive = (until_BTH >= end_B11) & (position_BT1 >= 0) & (position_BT1 < end_B11 - window)
    old_alive = (until_before_BNH >= end_B11) & (old.position_BNH >= 0)
    alive = torch.cat((old_alive, alive), 1)
    never_kept = slots == 0
    if slots is None:
        slots = int(alive.sum(1).max())
    # stable: kept tokens stay in their order, empty slots come last
    order_BNH = alive.long().argsort(dim=1, descending=True, stable=True)[:, :slots]
    alive_BNH = alive.gather(1, order_BNH)

    def pick(old: torch.Tensor, new: torch.Tensor, empty: float) -> torch.Tensor:
        """The kept entries [B, N, H, ...] among those of before and the tokens'."""
        both = torch.cat((old, new), 1)
        wide = [1] * (both.dim() - 3)
        index = order_BNH.view(*order_BNH.shape, *wide).expand(-1, -1, -1, *both.shape[3:])
        kept = both.gather(1, index).masked_fill(~alive_BNH.view(*alive_BNH.shape, *wide), empty)
        missing = (len(kept), slots - kept.shape[1], *kept.shape[2:])
        return torch.cat((kept, kept.new_full(missing, empty)), 1)

    old_k, old_v = (x[:, :, window:].movedim(1, 2) for x in (before.k_BHCD, before.v_BHCD))
    score = data[2].masked_fill(position_BT1 < sink, torch.inf)
    far = [
        pick(old_k, data[0], 0),
        pick(old_v, data[1], 0),
        pick(old.score_BNH, score, -torch.inf),
    ]
    k, v, score = (
        torch.cat(pair, 1).movedim(1, 2).contiguous() for pair in zip(near, far, strict=True)
    )
    position = pick(old.position_BNH, position_BT1.expand(-1, -1, score.shape[1]), -1)
    if never_kept:
        score = score[..., :0]
    return Cache(k, v, score, position.movedim(1, 2).contiguous(), length_B)
