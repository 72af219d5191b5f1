"""Learnable token eviction (LTE, arXiv 2510.20787): a window, sinks, and what a small CNN keeps.

Shape suffixes beside base.py's: M = 2 * margin tokens of scoring context, W window, N kept slots,
C columns (kept + window + new tokens).
"""

from dataclasses import dataclass, field

import torch

from forgetmenot.mixers.base import Mixer as Base
from forgetmenot.mixers.base import Place, start_positions
from forgetmenot.mixers.lte_scorer import Scorer
from forgetmenot.mixers.lte_state import State, advance, empty_state
from forgetmenot.mixers.rotary import rotate
from forgetmenot_kernels.lte_attention import Columns, attend, lte_streaming_cap
from forgetmenot_kernels.lte_attention.reference import Slots


@dataclass(frozen=True)
class Options:
    """Heads, window and budget (LTE specification, sections 1.2 and 2)."""

    heads: int  # query heads
    kv_heads: int  # key/value heads; each decides for itself what it keeps
    head_dim: int  # width of a head, even
    window: int  # W, tokens seen without being kept, the current one included
    sink: int = 4  # first tokens of the sequence, always kept
    budget: int | None = 512  # b, kept tokens of a head, sinks included; null = no cap
    kernels: list[int] = field(default_factory=lambda: [3, 3, 3])  # taps of the scorer's layers
    dilations: list[int] = field(default_factory=lambda: [2, 2, 2])  # dilations of the layers
    dropout: float = 0.1  # on the input of each scorer layer, in training
    rope_theta: float | None = 10000.0  # base of the rotary angles; null = no positions

    def __post_init__(self) -> None:
        margin = sum((k - 1) * d for k, d in zip(self.kernels, self.dilations, strict=True)) // 2
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: found {self.kv_heads}; allowed: divisors of {self.heads}")
        if any(k % 2 == 0 for k in self.kernels):
            raise ValueError(f"kernels: found {self.kernels}; allowed: odd numbers")
        if self.window < max(1, margin):
            raise ValueError(f"window: found {self.window}; allowed: at least the margin {margin}")
        if self.budget is not None and self.budget < self.sink:
            raise ValueError(f"budget: found {self.budget}; allowed: at least sink {self.sink}")


class Mixer(Base):
    """Attention over window, sinks and kept tokens; see docs/semantics.md for the one rule.

    In training there is no cap: every token with a positive score stays visible. Otherwise the
    kept buffer of each head is a streaming top-b, in a full pass, in prefill and in decoding alike.
    `aux` has `score_BTH` (s = sigmoid(r) - 0.5, differentiable; the last `margin` are provisional)
    and `visible_until_BTH`.
    """

    def __init__(self, place: Place, options: Options) -> None:
        super().__init__(place)
        self.options = o = options
        self.budget, self.window = o.budget, o.window
        self.q = self._linear(place.hidden, o.heads * o.head_dim)
        self.k = self._linear(place.hidden, o.kv_heads * o.head_dim)
        self.v = self._linear(place.hidden, o.kv_heads * o.head_dim)
        self.out = self._linear(o.heads * o.head_dim, place.hidden)
        self.scorer = Scorer(o.kv_heads, o.head_dim, o.kernels, o.dilations, o.dropout)
        self.receptive_margin = self.scorer.margin
        self.router_on = True  # the trainer's warm-up: off = scores are learned, all is kept
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self._reset_linears()
        self.scorer.reset_parameters()

    def state_bytes(self, length: int) -> int:
        """Window and kept slots with their scores, and the scorer's context (bytes, float32).

        Constant once `length` reaches the window. Without a budget, what the sinks alone take.
        """
        o = self.options
        slots = o.sink if o.budget is None else o.budget
        window, context = min(length, o.window), min(length, 2 * self.receptive_margin)
        pair = 2 * o.kv_heads * o.head_dim
        return 4 * ((window + slots + context) * pair + (window + slots) * o.kv_heads)

    def forward(
        self,
        x_BLD: torch.Tensor,
        state: State | None = None,
        *,
        mask_BL: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, State, dict[str, torch.Tensor]]:
        o = self.options
        time = x_BLD.shape[1]
        position_BL = start_positions(state.length_B if state else None, mask_BL, x_BLD)
        q = rotate(self.q(x_BLD).unflatten(-1, (o.heads, -1)), position_BL, o.rope_theta)
        k = self.k(x_BLD).unflatten(-1, (o.kv_heads, -1))
        v = self.v(x_BLD).unflatten(-1, (o.kv_heads, -1))
        if state is None:
            state = empty_state(k, 0 if self.training else o.budget or 0)

        pairs = torch.cat((state.context_BMHE, torch.cat((k, v), -1)), 1)
        pairs_position = torch.cat((state.context_position_BM, position_BL), 1)
        logits = self.scorer(pairs, pairs_position >= 0)
        window_logit, logit_BTH = self._split_logits(state, logits, time)
        score_BTH = logit_BTH.sigmoid() - 0.5
        # straight through: the value as it is, but its gradient also reaches the score
        gate = (score_BTH - score_BTH.detach())[..., None]
        seen_v = v + v.detach() * gate

        near_logit = torch.cat((window_logit, logit_BTH), 1).detach()
        if not self.router_on:
            near_logit = torch.ones_like(near_logit)
        near_position = torch.cat((state.window_position_BW, position_BL), 1)
        until, until_kept = lte_streaming_cap(
            near_logit,
            near_position,
            time,
            window=o.window,
            sink=o.sink,
            budget=None if self.training else o.budget,
            held=Slots(state.kept_logit_BNH, state.kept_position_BNH),
        )
        rotated = rotate(k, position_BL, o.rope_theta)
        shared = near_position[..., None].expand(-1, -1, o.kv_heads)
        columns = Columns(
            torch.cat((state.kept_k_BNHD, state.window_k_BWHD, rotated), 1),
            torch.cat((state.kept_v_BNHD, state.window_v_BWHD, seen_v), 1),
            torch.cat((state.kept_position_BNH, shared), 1),
            torch.cat((until_kept, until), 1),
        )
        y = attend(q, columns, position_BL, window=o.window, sink=o.sink)
        state = advance(
            columns,
            torch.cat((state.kept_logit_BNH, near_logit), 1),
            pairs,
            pairs_position,
            position_BL[:, -1] + 1,
            held=state.kept_position_BNH.shape[1],
            window=o.window,
            context=2 * self.receptive_margin,
            slots=None if self.training else o.budget,
        )
        aux = {"score_BTH": score_BTH, "visible_until_BTH": until[:, -time:]}
        return self.out(y.flatten(2)), state, aux

    def _split_logits(
        self, state: State, logits_BCH: torch.Tensor, time: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the window's tokens, the last `margin` now final, and of the new tokens."""
        old, held = logits_BCH.shape[1] - time, state.window_logit_BWH.shape[1]
        fresh = min(self.receptive_margin, old, held)
        settled = state.window_logit_BWH[:, : held - fresh]
        return torch.cat((settled, logits_BCH[:, old - fresh : old]), 1), logits_BCH[:, old:]
