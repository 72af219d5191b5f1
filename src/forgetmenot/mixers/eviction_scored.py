"""Eviction by scores that are known as a token arrives: sinks, random, recency, what is told."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from forgetmenot.mixers.window_cache import Rule
from forgetmenot_kernels.lte_attention import Cache
from forgetmenot_kernels.lte_attention.cache import scores_dtype
from forgetmenot_kernels.packing import Packing

# Scores [B, L, H or 1] from positions [B, L] and whether sequences start; positive = worth keeping.
Score = Callable[[torch.Tensor, bool], torch.Tensor]
MASK = 0xFFFFFFFF


class Scored(NamedTuple):
    """The rule of eviction under such scores."""

    rule: Rule
    score: Score

    def whole(
        self,
        q_BLGD: torch.Tensor,
        k_BLHD: torch.Tensor,
        v_BLHD: torch.Tensor,
        position_BL: torch.Tensor,
        packing: Packing | None,
        need_state: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, Cache | None]:
        """Attention of whole sequences, visible_until [B, L, H], and the memory after them."""
        score = self._scores(position_BL, k_BLHD, True)
        y, until = self.rule.whole(q_BLGD, k_BLHD, v_BLHD, score, packing)
        assert until is not None
        cache = self.rule.start(k_BLHD, v_BLHD, score, until, packing) if need_state else None
        return y, until, cache

    def segment(
        self,
        q_BLGD: torch.Tensor,
        k_BLHD: torch.Tensor,
        v_BLHD: torch.Tensor,
        position_BL: torch.Tensor,
        before: Cache,
    ) -> tuple[torch.Tensor, torch.Tensor, Cache]:
        """The same for a segment that continues sequences, in new tensors."""
        score = self._scores(position_BL, k_BLHD, False)
        return self.rule.segment(q_BLGD, k_BLHD, v_BLHD, score, position_BL, before)

    def step(
        self,
        q_B1GD: torch.Tensor,
        k_B1HD: torch.Tensor,
        v_B1HD: torch.Tensor,
        position_B1: torch.Tensor,
        cache: Cache,
    ) -> torch.Tensor:
        """Attention of one more token; `cache` is changed in place."""
        score_B1H = self._scores(position_B1, k_B1HD, False)
        y = self.rule.step(q_B1GD, k_B1HD, v_B1HD, cache)
        if cache.score_BHC.shape[2]:
            rows = torch.arange(len(y), device=y.device)
            cache.score_BHC[rows, :, position_B1[:, 0] % self.rule.window] = score_B1H[:, 0]
        return y

    def _scores(
        self, position_BL: torch.Tensor, k_BLHD: torch.Tensor, starts: bool
    ) -> torch.Tensor:
        score = self.score(position_BL, starts).to(scores_dtype(k_BLHD))
        return score.expand(*position_BL.shape, k_BLHD.shape[2])


def everything(position_BL: torch.Tensor, starts: bool) -> torch.Tensor:
    """All tokens alike are worth keeping."""
    return torch.ones_like(position_BL, dtype=torch.float32)[..., None]


def nothing(position_BL: torch.Tensor, starts: bool) -> torch.Tensor:
    """No token is, but for the sinks."""
    return torch.zeros_like(position_BL, dtype=torch.float32)[..., None]


def recency(position_BL: torch.Tensor, starts: bool) -> torch.Tensor:
    """The later the better."""
    return (position_BL[..., None] + 1).float()


def random_scores(position_BL: torch.Tensor, seed: int, heads: range) -> torch.Tensor:
    """Uniform on {1, ..., 2**24} / 2**24, a function of seed, head and position: [B, L, H].

    The highest scores so far are then a uniform sample without replacement.
    """
    head_H = torch.tensor(heads, device=position_BL.device)
    start_H = _mix(_mix(torch.full_like(head_H, seed & MASK)) + head_H & MASK)
    # exact in float32, so that no device or dtype ranks otherwise
    return ((_mix(position_BL[..., None] + start_H & MASK) >> 8) + 1).float() / 2**24


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Scatter 32-bit numbers, one to one, by products that int64 holds without overflow."""
    for _ in range(2):
        x = (x ^ (x >> 16)) * 0x45D9F3B & MASK
    return x ^ (x >> 16)
