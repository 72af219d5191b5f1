"""Eviction by the attention that tokens receive: H2O and TOVA, one token after another.

Scores change with every query, so there is no shortcut for whole sequences: each is walked as in
decoding. Shape suffixes as in `forgetmenot_kernels.lte_attention.cache`, and E entries: the N kept
slots of before, the window's W tokens, then the segment's T tokens.
"""

from typing import NamedTuple

import torch

from forgetmenot_kernels.lte_attention import FOREVER, Cache, Columns, attend
from forgetmenot_kernels.lte_attention.cache import empty_cache, ring, window_tokens
from forgetmenot_kernels.lte_attention.decode import evict, read, write
from forgetmenot_kernels.packing import Packing, pad, unpad


class Received(NamedTuple):
    """The policy: probabilities summed over all queries so far (H2O), or the last one's (TOVA)."""

    accumulate: bool
    window: int
    sink: int
    slots: int

    def step(
        self,
        q_B1GD: torch.Tensor,
        k_B1HD: torch.Tensor,
        v_B1HD: torch.Tensor,
        position_B1: torch.Tensor,
        cache: Cache,
    ) -> torch.Tensor:
        """Evict by the scores so far, then write and read one token [B, 1, G, D]; in place."""
        evict(cache, self.sink)
        return self._read(q_B1GD[:, 0], k_B1HD[:, 0], v_B1HD[:, 0], cache)[:, None]

    def segment(
        self,
        q_BTGD: torch.Tensor,
        k_BTHD: torch.Tensor,
        v_BTHD: torch.Tensor,
        position_BT: torch.Tensor,
        before: Cache,
    ) -> tuple[torch.Tensor, torch.Tensor, Cache]:
        """Attention [B, T, G, D] of a segment, visible_until [B, T, H], and the memory after it.

        `before` stays as it is. Gradients flow through queries, keys and values, none through what
        is kept. visible_until is 0 for tokens that are still in the window.
        """
        after = Cache(*(x.detach().clone() for x in before))
        y, until_BHE, entry_BHN = self._walk(q_BTGD, k_BTHD, v_BTHD, after)
        inputs = (q_BTGD, k_BTHD, v_BTHD, before.k_BHCD, before.v_BHCD)
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            y, after = self._again(
                q_BTGD, k_BTHD, v_BTHD, position_BT, before, until_BHE, entry_BHN, after
            )
        return y, until_BHE[..., -q_BTGD.shape[1] :].mT, after

    def whole(
        self,
        q_BTGD: torch.Tensor,
        k_BTHD: torch.Tensor,
        v_BTHD: torch.Tensor,
        position_BT: torch.Tensor,
        packing: Packing | None,
        need_state: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, Cache]:
        """The same for whole sequences; packed rows stay packed. The memory is made anyway."""
        data = (q_BTGD, k_BTHD, v_BTHD, position_BT)
        if packing is None:
            return self.segment(*data, empty_cache(k_BTHD, self.window, self.slots))
        # documents are made to end together: what stands before one has a negative position
        missing_N = packing.longest - packing.lengths_N
        packing = packing._replace(place_T=packing.place_T + missing_N[packing.row_T])
        q, k, v, position = (pad(x, packing) for x in data)
        before = empty_cache(k, self.window, self.slots)._replace(length_B=-missing_N)
        y, until, after = self.segment(q, k, v, position, before)
        return unpad(y, packing), unpad(until, packing), after

    def _read(
        self, q_BGD: torch.Tensor, k_BHD: torch.Tensor, v_BHD: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        write(cache, k_BHD, v_BHD)
        o_BGD, weight_BHPC = read(q_BGD, cache, q_BGD.shape[-1] ** -0.5)
        score_BHC = cache.score_BHC
        if score_BHC.shape[2]:
            # a probability that underflows is still no reason to leave a free slot empty
            new = weight_BHPC.sum(2).clamp(min=torch.finfo(score_BHC.dtype).tiny)
            new = score_BHC + new if self.accumulate else new
            # sinks and empty slots are infinite; a sequence that has not begun reads NaN
            fixed = score_BHC.isinf() | (cache.length_B <= 0)[:, None, None]
            score_BHC.copy_(torch.where(fixed, score_BHC, new))
        return o_BGD

    @torch.no_grad()
    def _walk(
        self, q_BTGD: torch.Tensor, k_BTHD: torch.Tensor, v_BTHD: torch.Tensor, cache: Cache
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Outputs [B, T, G, D], visible_until of all entries, and which one each slot ends with."""
        batch, heads, slots = cache.position_BHN.shape
        time = q_BTGD.shape[1]
        until_BHE = torch.zeros(
            batch, heads, slots + self.window + time, dtype=torch.int32, device=q_BTGD.device
        )
        until_BHE[..., :slots] = FOREVER
        entry_BHN = torch.arange(slots, device=q_BTGD.device).expand(batch, heads, -1).clone()
        outputs = []
        for t in range(time):
            position_BHN = cache.position_BHN.clone()
            evict(cache, self.sink)
            entered = cache.position_BHN != position_BHN
            evicted = entered & (position_BHN >= 0)
            query_B = cache.length_B.int().view(-1, 1, 1)
            until = torch.where(evicted, query_B, until_BHE.gather(-1, entry_BHN))
            until_BHE.scatter_(-1, entry_BHN, until)
            # the token that leaves as query t arrives is number t of window and segment
            until_BHE[..., slots + t] = entered.any(-1).int() * FOREVER
            entry_BHN = entry_BHN.masked_fill(entered, slots + t)
            outputs.append(self._read(q_BTGD[:, t], k_BTHD[:, t], v_BTHD[:, t], cache))
        return torch.stack(outputs, 1), until_BHE, entry_BHN

    def _again(
        self,
        q_BTGD: torch.Tensor,
        k_BTHD: torch.Tensor,
        v_BTHD: torch.Tensor,
        query_BT: torch.Tensor,
        before: Cache,
        until_BHE: torch.Tensor,
        entry_BHN: torch.Tensor,
        after: Cache,
    ) -> tuple[torch.Tensor, Cache]:
        """Output and memory of a walk once more, with gradients, its decisions being known."""
        window, heads = self.window, k_BTHD.shape[2]
        tokens = window_tokens(before).extended(
            k_BTHD, v_BTHD, before.score_BHC.new_zeros(k_BTHD.shape[:3])
        )
        data = [
            (torch.cat((old[:, :, window:].movedim(1, 2), new), 1), new)
            for old, new in ((before.k_BHCD, tokens.k_BTHD), (before.v_BHCD, tokens.v_BTHD))
        ]
        position_BT = tokens.position_BT.clamp(min=-1)
        columns = Columns(
            data[0][0],
            data[1][0],
            torch.cat((before.held.position_BNH, position_BT[..., None].expand(-1, -1, heads)), 1),
            until_BHE.mT,
        )
        # what is no token asks as if at position 0, lest a softmax over nothing is NaN
        y = attend(q_BTGD, columns, query_BT, window=window, sink=self.sink)
        entry_BNH1 = entry_BHN.mT[..., None].expand(-1, -1, -1, k_BTHD.shape[3])
        k, v = (
            torch.cat(
                (ring(near, tokens.offset_B, after.length_B, window), every.gather(1, entry_BNH1)),
                1,
            ).movedim(1, 2)
            for every, near in data
        )
        return y, after._replace(k_BHCD=k, v_BHCD=v)
