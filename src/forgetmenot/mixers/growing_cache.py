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
    new = k_BLHD.shape[1]
    learning = k_BLHD.requires_grad or cache.k_BHCD.requires_grad
    cache = with_room(cache, new, copied=learning)
    length_B = cache.length_B
    rows = torch.arange(len(length_B), device=length_B.device)[:, None]
    slots = length_B[:, None] + torch.arange(new, device=length_B.device)
    cache.k_BHCD[rows, :, slots] = k_BLHD
    cache.v_BHCD[rows, :, slots] = v_BLHD
    return cache._replace(length_B=length_B + new)


def with_room(cache: GrowingCache, new: int, *, copied: bool = False) -> GrowingCache:
    """A cache into which `new` tokens a sequence may be written; `longest` counts them already.

    Uses up `cache`, unless its room has run out or `copied` is asked for: then in new tensors.
    """
    room, longest = cache.k_BHCD.shape[2], cache.longest + new
    if longest <= room and not copied:
        return cache._replace(longest=longest, at=cache.turn.take(cache.at))
    cache.turn.check(cache.at)
    room = room if longest <= room else max(longest, 2 * room)
    k_BHCD, v_BHCD = (widened(x, room) for x in (cache.k_BHCD, cache.v_BHCD))
    return GrowingCache(k_BHCD, v_BHCD, cache.length_B.clone(), longest, Turn(), 0)


def widened(x_BHCD: torch.Tensor, room: int) -> torch.Tensor:
    """A copy with `room` slots, the further ones zero."""
    more = x_BHCD.new_zeros(*x_BHCD.shape[:2], room - x_BHCD.shape[2], x_BHCD.shape[3])
    return torch.cat((x_BHCD, more), 2)
