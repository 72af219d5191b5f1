"""The state of an NSA layer: all keys and values, and the means of their blocks.

Shape suffixes beside base.py's: P slots of pooled blocks.
"""

from typing import NamedTuple

import torch

from forgetmenot.mixers import growing_cache
from forgetmenot.mixers.growing_cache import GrowingCache, append, start_cache, widened
from forgetmenot_kernels.nsa import Cache, nsa_cache
from forgetmenot_kernels.packing import Packing


class State(NamedTuple):
    """Keys and values by position, and pooled ones as `forgetmenot_kernels.nsa.Cache` has them."""

    kv: GrowingCache
    pooled_k_BHPD: torch.Tensor
    pooled_v_BHPD: torch.Tensor

    def cache(self) -> Cache:
        """The operator's view of the memory, room for tokens to come included."""
        kv = self.kv
        return Cache(kv.k_BHCD, kv.v_BHCD, self.pooled_k_BHPD, self.pooled_v_BHPD, kv.length_B)

    def filled(self, block: int) -> Cache:
        """The same without the room that no sequence has reached."""
        kv, blocks = self.kv, -(-self.kv.longest // block)
        return Cache(
            kv.k_BHCD[:, :, : kv.longest],
            kv.v_BHCD[:, :, : kv.longest],
            self.pooled_k_BHPD[:, :, :blocks],
            self.pooled_v_BHPD[:, :, :blocks],
            kv.length_B,
        )


def started(
    k_BLHD: torch.Tensor, v_BLHD: torch.Tensor, packing: Packing | None, block: int
) -> State:
    """The state after whole sequences."""
    return _pooled(start_cache(k_BLHD, v_BLHD, packing), block)


def continued(state: State, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor, block: int) -> State:
    """The state with L more tokens in each sequence; all blocks are pooled again."""
    return _pooled(append(state.kv, k_BLHD, v_BLHD), block)


def with_room(state: State, block: int) -> State:
    """The state in whose memory an in-place step may write one token; it counts as seen already.

    Takes the turn of `state`. Only when its room is used up is the memory copied, to double size.
    """
    kv = growing_cache.with_room(state.kv, 1)
    if kv.k_BHCD is state.kv.k_BHCD:
        return state._replace(kv=kv)
    slots = -(-kv.k_BHCD.shape[2] // block)
    return State(kv, widened(state.pooled_k_BHPD, slots), widened(state.pooled_v_BHPD, slots))


def _pooled(kv: GrowingCache, block: int) -> State:
    cache = nsa_cache(kv.k_BHCD, kv.v_BHCD, block=block, length_B=kv.length_B)
    return State(kv, cache.pooled_k_BHPD, cache.pooled_v_BHPD)
