"""Attention over a window, sinks and kept tokens, with its memory of constant size.

The visibility rule is that of `forgetmenot_kernels.lte_attention` (docs/semantics.md). Keys come
rotated. Shape suffixes as in base.py, and G query heads.
"""

from dataclasses import dataclass

import torch

from forgetmenot_kernels.lte_attention import (
    Cache,
    Columns,
    attend,
    lte_attention,
    lte_decode_step,
    lte_segment_cap,
    lte_streaming_cap,
)
from forgetmenot_kernels.lte_attention.cache import Tokens, empty_cache, refill, window_tokens
from forgetmenot_kernels.packing import Packing, pad


@dataclass(frozen=True)
class Rule:
    """W, the number of sinks, and b: kept tokens of a head (None = no cap, 0 = nothing is kept)."""

    window: int
    sink: int = 0
    budget: int | None = 0

    def whole(
        self,
        q_BLGD: torch.Tensor,
        k_BLHD: torch.Tensor,
        v_BLHD: torch.Tensor,
        score_BLH: torch.Tensor | None,
        packing: Packing | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of whole sequences [B, L, G, D], and visible_until [B, L, H].

        Without scores nothing is kept.
        """
        until = None
        if score_BLH is not None:
            until = lte_streaming_cap(
                score_BLH,
                window=self.window,
                sink=self.sink,
                budget=self.budget,
                cu_seqlens=packing,
            )
        y = lte_attention(
            q_BLGD, k_BLHD, v_BLHD, until, window=self.window, sink=self.sink, cu_seqlens=packing
        )
        return y, until

    def start(
        self,
        k_BLHD: torch.Tensor,
        v_BLHD: torch.Tensor,
        score_BLH: torch.Tensor | None,
        until_BLH: torch.Tensor | None,
        packing: Packing | None,
    ) -> Cache:
        """The memory after whole sequences."""
        if score_BLH is None or until_BLH is None:
            score_BLH = k_BLHD.new_zeros(k_BLHD.shape[:3])
            until_BLH = torch.zeros_like(score_BLH, dtype=torch.int32)
        if packing is not None:
            parts = (k_BLHD, v_BLHD, score_BLH, until_BLH)
            k_BLHD, v_BLHD, score_BLH, until_BLH = (pad(x, packing) for x in parts)
        batch, time = k_BLHD.shape[:2]
        offset_B = torch.zeros(batch, dtype=torch.int64, device=k_BLHD.device)
        before = empty_cache(k_BLHD, self.window, 0)
        return refill(
            before,
            before.position_BHN.mT,
            Tokens(k_BLHD, v_BLHD, score_BLH, offset_B),
            until_BLH,
            offset_B + time if packing is None else packing.lengths_N.clone(),
            sink=self.sink,
            slots=self.budget,
        )

    def segment(
        self,
        q_BLGD: torch.Tensor,
        k_BLHD: torch.Tensor,
        v_BLHD: torch.Tensor,
        score_BLH: torch.Tensor,
        position_BL: torch.Tensor,
        before: Cache,
        settled_BSH: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, Cache]:
        """Attention of a segment that continues sequences, in new tensors.

        `settled_BSH` are the final scores of the last S tokens before it. Returns the output,
        visible_until of the segment's tokens, and the memory after it.
        """
        near = window_tokens(before)
        if settled_BSH is not None:
            first = near.score_BTH.shape[1] - settled_BSH.shape[1]
            score = torch.cat((near.score_BTH[:, :first], settled_BSH.to(near.score_BTH)), 1)
            near = near._replace(score_BTH=score)
        tokens = near.extended(k_BLHD, v_BLHD, score_BLH.to(near.score_BTH))
        position_BT = tokens.position_BT.clamp(min=-1)
        time, heads = k_BLHD.shape[1:3]
        until, until_held = lte_segment_cap(
            tokens.score_BTH, position_BT, before.held,
            window=self.window, sink=self.sink, budget=self.budget,
        )  # fmt: skip
        far_k, far_v = (x[:, :, self.window :] for x in (before.k_BHCD, before.v_BHCD))
        columns = Columns(
            torch.cat((far_k.movedim(1, 2), tokens.k_BTHD), 1),
            torch.cat((far_v.movedim(1, 2), tokens.v_BTHD), 1),
            torch.cat((before.held.position_BNH, position_BT[..., None].expand(-1, -1, heads)), 1),
            torch.cat((until_held, until), 1),
        )
        y = attend(q_BLGD, columns, position_BL, window=self.window, sink=self.sink)
        length_B = before.length_B + time
        after = refill(
            before, until_held, tokens, until, length_B, sink=self.sink, slots=self.budget
        )
        return y, until[:, -time:], after

    def step(
        self, q_B1GD: torch.Tensor, k_B1HD: torch.Tensor, v_B1HD: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        """Attention of one more token; `cache` is changed in place."""
        o_BGD = lte_decode_step(
            q_B1GD[:, 0], k_B1HD[:, 0], v_B1HD[:, 0], cache, window=self.window, sink=self.sink
        )
        return o_BGD[:, None]
