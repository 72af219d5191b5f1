"""Learnable token eviction (LTE, arXiv 2510.20787): a window, sinks, and what a small CNN keeps.

Shape suffixes beside base.py's: E tokens of the scorer's context, S tokens whose score was open, X
= 2 x head width.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from forgetmenot.mixers.base import Mixed, Place, Turn, positions
from forgetmenot.mixers.base import Mixer as Base
from forgetmenot.mixers.lte_scorer import Scorer
from forgetmenot.mixers.rotary import rotate
from forgetmenot.mixers.window_cache import Rule
from forgetmenot_kernels.lte_attention import Cache
from forgetmenot_kernels.lte_attention.cache import ring, unrolled
from forgetmenot_kernels.packing import Packing, pad, unpad


@dataclass(frozen=True)
class Options:
    """Heads, window and budget (LTE specification, sections 1.2 and 2)."""

    heads: int  # query heads
    kv_heads: int  # key/value heads; each decides for itself what it keeps
    head_dim: int  # width of a head, even
    window: int  # W, tokens seen without being kept, the current one included
    sink: int = 4  # first tokens of the sequence, always kept
    budget: int | None = 512  # b, kept tokens of a head, sinks included; null = no cap
    # taps of the scorer's layers: [3, 3, 3] is the CNN; [1, 1, 1] an MLP, [] a linear map
    kernels: list[int] = field(default_factory=lambda: [3, 3, 3])
    dilations: list[int] = field(default_factory=lambda: [2, 2, 2])  # dilations of the layers
    dropout: float = 0.1  # on the input of each scorer layer, in training
    router_shared: Literal["head", "layer", "all"] = (
        "head"  # one scorer a head, a layer, or for all
    )
    router_score: Literal["sigmoid", "relu"] = "sigmoid"  # s = sigmoid(r) - 0.5, or relu(r)
    router_grad: bool = True  # gradients of the scores reach keys and values
    rope_theta: float | None = 10000.0  # base of the rotary angles; null = no positions

    def __post_init__(self) -> None:
        if len(self.kernels) != len(self.dilations):
            raise ValueError(f"dilations: found {self.dilations}; allowed: one for each of kernels")
        margin = sum((k - 1) * d for k, d in zip(self.kernels, self.dilations, strict=True)) // 2
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: found {self.kv_heads}; allowed: divisors of {self.heads}")
        if any(k % 2 == 0 for k in self.kernels):
            raise ValueError(f"kernels: found {self.kernels}; allowed: odd numbers")
        if self.window < max(1, margin):
            raise ValueError(f"window: found {self.window}; allowed: at least the margin {margin}")
        if self.budget is not None and self.budget < self.sink:
            raise ValueError(f"budget: found {self.budget}; allowed: at least sink {self.sink}")


class State(NamedTuple):
    """The memory, and what the scores of the last tokens still wait for.

    `context_BEHX` is a ring of the last tokens' [k; v], keys not rotated. The last `delay` +
    `unscored` tokens have no final score yet.
    """

    cache: Cache
    context_BEHX: torch.Tensor
    unscored: int
    turn: Turn
    at: int


class Mixer(Base):
    """Attention over window, sinks and kept tokens; see docs/semantics.md for the one rule.

    In training there is no cap: every token with a positive score stays visible. Otherwise the
    kept buffer of each head is a streaming top-b, in a full pass, in prefill and in decoding alike.
    `aux` of a pass over several tokens has `score_BTH` (differentiable; the last `margin` are
    provisional) and `visible_until_BTH`, that of a whole sequence also `logit_BTH`, which decides
    on keeping; and `cu_seqlens` when they belong to packed documents.
    """

    def __init__(self, place: Place, options: Options) -> None:
        super().__init__(place)
        self.options = o = options
        self.budget, self.window = o.budget, o.window
        self.q = self._linear(place.hidden, o.heads * o.head_dim)
        self.k = self._linear(place.hidden, o.kv_heads * o.head_dim)
        self.v = self._linear(place.hidden, o.kv_heads * o.head_dim)
        self.out = self._linear(o.heads * o.head_dim, place.hidden)
        sets = o.kv_heads if o.router_shared == "head" else 1
        self.scorer = Scorer(sets, o.head_dim, o.kernels, o.dilations, o.dropout)
        self.receptive_margin = margin = self.scorer.margin
        # In decoding, tokens are scored once `delay` tokens have followed, many at a time, but each
        # before it leaves the window. What waits is kept twice: a small part of the window.
        self.delay = max(1, margin)
        self.score_every = min(32, max(1, o.window // 16), o.window - self.delay + 1)
        self.context = margin + self.score_every + self.delay
        self.router_on = True  # the trainer's warm-up: off = scores are learned, all is kept
        self.count_held = False  # the trainer's quantile rule: gradients leave the count alone
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self._reset_linears(residual=self.out)
        self.scorer.reset_parameters()

    @property
    def keep_bias(self) -> nn.Parameter:
        """The bias [sets, 1] that all logits of a head have: what a controller may set."""
        return self.scorer.project.bias

    def share(self, first: Base) -> None:
        if self.options.router_shared == "all" and isinstance(first, Mixer):
            self.scorer = first.scorer

    def state_bytes(self, length: int) -> int:
        """Window and kept slots with their scores, and the scorer's context (bytes, float32).

        Constant in `length`. Without a budget, what the sinks alone take.
        """
        o = self.options
        slots = o.window + (o.sink if o.budget is None else o.budget)
        return 4 * o.kv_heads * ((slots + self.context) * 2 * o.head_dim + slots)

    def flops(self, context: int) -> int:
        """Projections and scorer, and scores and sums over window and full budget."""
        o = self.options
        seen = min(context + 1, o.window + (o.budget or 0)) if o.budget is not None else context + 1
        scoring = o.kv_heads * self.scorer.flops()
        return super().flops(context) + scoring + 4 * seen * o.heads * o.head_dim

    def mix(
        self, x_BLD: torch.Tensor, state: State | None, packing: Packing | None, need_state: bool
    ) -> Mixed:
        o = self.options
        position_BL = positions(x_BLD, state.cache.length_B if state else None, packing)
        q = self.q(x_BLD).unflatten(-1, (o.heads, -1))
        k = self.k(x_BLD).unflatten(-1, (o.kv_heads, -1))
        v = self.v(x_BLD).unflatten(-1, (o.kv_heads, -1))
        if x_BLD.shape[1] == 1:  # a step's time is launches: half as many for the rotation
            both = rotate(torch.cat((q, k), 2), position_BL, o.rope_theta)
            q, rotated = both[:, :, : o.heads], both[:, :, o.heads :]
        else:
            q, rotated = (rotate(x, position_BL, o.rope_theta) for x in (q, k))
        pairs = torch.cat((k, v), -1)
        if state is not None and self._in_place(q, state):
            y, state = self._step(q, rotated, v, pairs, state)
            return self.out(y.flatten(2)), state, {}

        rule = Rule(o.window, o.sink, None if self.training else o.budget)
        aux: dict[str, torch.Tensor] = {}
        if state is None:
            logits = self._logits(pairs, packing)
            aux["logit_BTH"] = logits.detach()
            seen_v, score, keep = self._gate(v, logits)
            y, until = rule.whole(q, rotated, seen_v, keep, packing)
            if need_state:
                cache = rule.start(rotated, seen_v, keep, until, packing)
                context = ring(
                    pairs if packing is None else pad(pairs, packing),
                    torch.zeros_like(cache.length_B),
                    cache.length_B,
                    self.context,
                )
                state = State(cache, context, 0, Turn(), 0)
        else:
            y, score, until, state = self._segment(q, rotated, v, pairs, position_BL, state, rule)
        assert until is not None
        aux |= {"score_BTH": score, "visible_until_BTH": until}
        if packing is not None:
            aux["cu_seqlens"] = packing.cu_seqlens
        return self.out(y.flatten(2)), state, aux

    def _in_place(self, q: torch.Tensor, state: State) -> bool:
        """Whether a call is a step of decoding, which writes into the state's memory."""
        learning = self.training or q.requires_grad or state.cache.k_BHCD.requires_grad
        return q.shape[1] == 1 and not learning and self.options.budget is not None

    def _step(
        self,
        q: torch.Tensor,
        rotated: torch.Tensor,
        v: torch.Tensor,
        pairs_B1HX: torch.Tensor,
        state: State,
    ) -> tuple[torch.Tensor, State]:
        o, cache, context = self.options, state.cache, state.context_BEHX
        at = state.turn.take(state.at)
        rows = torch.arange(len(context), device=context.device)
        context[rows, cache.length_B % self.context] = pairs_B1HX[:, 0]
        if self.step_kind(state):
            self._score_window(cache, context)
        y = Rule(o.window, o.sink, o.budget).step(q, rotated, v, cache)
        return y, self.counted(state)._replace(at=at)

    def step_kind(self, state: State) -> bool:
        """Whether the step after `state` scores the tokens that wait (`decode_graph.py`)."""
        return state.unscored + 1 == self.score_every

    def counted(self, state: State) -> State:
        """`state` with what the host counts moved on by one step (`decode_graph.py`)."""
        return state._replace(unscored=(state.unscored + 1) % self.score_every)

    def _score_window(self, cache: Cache, context_BEHX: torch.Tensor) -> None:
        """Score the tokens whose right context has come, the newest being in the context only."""
        seen_B = cache.length_B + 1
        place = torch.arange(self.context, device=seen_B.device)
        position_BE = seen_B[:, None] - self.context + place
        logits = self.scorer(unrolled(context_BEHX, seen_B), position_BE >= 0)
        final = slice(self.receptive_margin, self.context - self.delay)
        position_BS, keep_BSH = position_BE[:, final], self._keep(logits[:, final])
        rows = torch.arange(len(seen_B), device=seen_B.device)[:, None]
        slot_BS = position_BS % self.options.window
        old_BSH = cache.score_BHC[rows, :, slot_BS]
        cache.score_BHC[rows, :, slot_BS] = torch.where(
            (position_BS >= 0)[..., None], keep_BSH.to(old_BSH), old_BSH
        )

    def _segment(
        self,
        q: torch.Tensor,
        rotated: torch.Tensor,
        v: torch.Tensor,
        pairs_BLHX: torch.Tensor,
        position_BL: torch.Tensor,
        state: State,
        rule: Rule,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, State]:
        state.turn.check(state.at)
        length_B = state.cache.length_B
        pairs = torch.cat((unrolled(state.context_BEHX, length_B), pairs_BLHX), 1)
        place = torch.arange(pairs.shape[1], device=length_B.device)
        offset_B = self.context - length_B
        logits = self.scorer(self._scored(pairs), place >= offset_B[:, None])
        open_tokens = self.delay + state.unscored
        settled = self._keep(logits[:, self.context - open_tokens : self.context])
        seen_v, score, keep = self._gate(v, logits[:, self.context :])
        y, until, cache = rule.segment(q, rotated, seen_v, keep, position_BL, state.cache, settled)
        context = ring(pairs, offset_B, cache.length_B, self.context)
        return y, score, until, State(cache, context, 0, Turn(), 0)

    def _scored(self, pairs: torch.Tensor) -> torch.Tensor:
        # while the router is off, scores only learn: they do not pull at keys and values
        return pairs if self.options.router_grad and self.router_on else pairs.detach()

    def _logits(self, pairs_BLHX: torch.Tensor, packing: Packing | None) -> torch.Tensor:
        pairs = self._scored(pairs_BLHX)
        if packing is None:
            return self.scorer(pairs, None)
        return unpad(self.scorer(pad(pairs, packing), packing.token_NL), packing)

    def _gate(
        self, v: torch.Tensor, logit_BLH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Values, scores, and what decides on keeping.

        Straight through: the values stay as they are, but their gradient also reaches the scores.
        """
        if self.count_held:
            logit_BLH = _above_threshold(logit_BLH)
        sigmoid = self.options.router_score == "sigmoid"
        score = logit_BLH.sigmoid() - 0.5 if sigmoid else F.relu(logit_BLH)
        if torch.is_grad_enabled():
            v = v + v.detach() * (score - score.detach())[..., None].to(v.dtype)
        return v, score, self._keep(logit_BLH)

    def _keep(self, logit_BLH: torch.Tensor) -> torch.Tensor:
        """The logits, by which tokens are kept and ranked; while the router is off, all are kept.

        Logits and scores have the same sign and order, but saturating scores tie.
        """
        return logit_BLH.detach() if self.router_on else torch.ones_like(logit_BLH)


def _above_threshold(logit_BLH: torch.Tensor) -> torch.Tensor:
    """The logits, differentiated as their distance to a threshold that moves with them.

    Where sum(sigmoid(r - t)) over all tokens is held constant by t, dt/dr_j = sigmoid'(r_j) /
    sum(sigmoid'): a gradient that would shift all logits alike vanishes. Without this, the one
    that the values send drives them on for ever, since the controller undoes every shift.
    """
    r = logit_BLH.detach()
    weight_BLH = r.sigmoid() * (1 - r.sigmoid())
    total_H = weight_BLH.sum((0, 1)).clamp(min=torch.finfo(r.dtype).tiny)
    threshold_H = (weight_BLH * (logit_BLH - r)).sum((0, 1)) / total_H  # 0 but for its gradient
    return logit_BLH - threshold_H
