"""A cache of all keys and values: slot p holds the token at position p of its own sequence.

So the sequences of a batch line up at their first token, whatever their lengths. Room doubles when
it runs out; until then a token is written in place.

Shape suffixes beside base.py's: C slots, at least as many as the longest sequence has tokens.
"""

from typing import NamedTuple

import torch

from forgetmenot.mixers.base import Turn
from forgetmenot_kernels.packing import Packing, pad


class GrowingCache(NamedTuple):
    """Keys and values, tokens seen by each sequence, and the most of them."""

    k_BHCD: torch.Tensor
    v_BHCD: torch.Tensor
    length_B: torch.Tensor  # int64
    longest: int
    turn: Turn
    at: int


def start_cache(
    k_BLHD: torch.Tensor, v_BLHD: torch.Tensor, packing: Packing | None
) -> GrowingCache:
    """The cache of whole sequences."""
    if packing is not None:
        k_BLHD, v_BLHD = pad(k_BLHD, packing), pad(v_BLHD, packing)
    batch, time, _, _ = k_BLHD.shape
    length_B = torch.full((batch,), time, device=k_BLHD.device)
    if packing is not None:
        length_B = packing.lengths_N.clone()
    return GrowingCache(k_BLHD.movedim(1, 2), v_BLHD.movedim(1, 2), length_B, time, Turn(), 0)


def append(cache: GrowingCache, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor) -> GrowingCache:
    """The cache with L more tokens in each sequence.

    In place where there is room and no gradient is wanted; then `cache` is used up.
    """
    room, new = cache.k_BHCD.shape[2], k_BLHD.shape[1]
    longest = cache.longest + new
    k_BHCD, v_BHCD, length_B, turn, at = cache.k_BHCD, cache.v_BHCD, cache.length_B, cache.turn, 0
    if k_BLHD.requires_grad or k_BHCD.requires_grad or longest > room:
        turn.check(cache.at)
        room = max(longest, 2 * room) if longest > room else room
        k_BHCD, v_BHCD = (_copy(x, room) for x in (k_BHCD, v_BHCD))
        turn = Turn()
    else:
        at = turn.take(cache.at)
    rows = torch.arange(len(length_B), device=length_B.device)[:, None]
    slots = length_B[:, None] + torch.arange(new, device=length_B.device)
    k_BHCD[rows, :, slots] = k_BLHD
    v_BHCD[rows, :, slots] = v_BLHD
    return GrowingCache(k_BHCD, v_BHCD, length_B + new, longest, turn, at)


def _copy(x_BHCD: torch.Tensor, room: int) -> torch.Tensor:
    more = x_BHCD.new_zeros(*x_BHCD.shape[:2], room - x_BHCD.shape[2], x_BHCD.shape[3])
    return torch.cat((x_BHCD, more), 2)
