"""Attention over a window, sinks and tokens kept by a rule without parameters: LTE's baselines.

The memory and the rule of eviction are those of LTE (docs/semantics.md); only scores differ. By
`policy`, with W the window and b the budget:

- `sink`: nothing but the sinks is kept (StreamingLLM, arXiv 2309.17453); the budget has no effect.
- `random`: a uniform sample of the past, fixed by seed, head and position.
- `recency`: the last tokens before the window, which amounts to a longer window.
- `h2o`: what has received most attention from all queries so far (arXiv 2306.14048).
- `tova`: what receives most attention from the last query (arXiv 2401.06104).
- `oracle`: what the caller says is needed (`eviction_oracle.needed`), first come, first kept.

`sink`, `random` and `recency` are the same in training. `h2o`, `tova` and `oracle` are for
inference alone, as in those papers: in training their layers attend to everything.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from forgetmenot.mixers.base import Mixed, Place, Turn, positions
from forgetmenot.mixers.base import Mixer as Base
from forgetmenot.mixers.eviction_online import Received
from forgetmenot.mixers.eviction_oracle import Oracle
from forgetmenot.mixers.eviction_scored import (
    Score,
    Scored,
    everything,
    nothing,
    random_scores,
    recency,
)
from forgetmenot.mixers.rotary import rotate
from forgetmenot.mixers.window_cache import Rule
from forgetmenot_kernels.lte_attention import Cache
from forgetmenot_kernels.packing import Packing


@dataclass(frozen=True)
class Options:
    """Heads, window and budget as in `lte`, and what decides instead of its scorer."""

    heads: int  # query heads
    kv_heads: int  # key/value heads; each decides for itself what it keeps
    head_dim: int  # width of a head, even
    window: int  # W, tokens seen without being kept, the current one included
    budget: int  # b, kept tokens of a head, sinks included
    policy: Literal["sink", "random", "recency", "h2o", "tova", "oracle"]  # what is kept
    sink: int = 4  # first tokens of the sequence, always kept
    seed: int = 0  # of the policy random
    rope_theta: float | None = 10000.0  # base of the rotary angles; null = no positions

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: found {self.kv_heads}; allowed: divisors of {self.heads}")
        if self.window < 1:
            raise ValueError(f"window: found {self.window}; allowed: at least 1")
        if self.sink < 0:
            raise ValueError(f"sink: found {self.sink}; allowed: 0 or more")
        if self.budget < self.sink:
            raise ValueError(f"budget: found {self.budget}; allowed: at least sink {self.sink}")


class State(NamedTuple):
    """The memory; its scores are final but for `h2o` and `tova`."""

    cache: Cache
    turn: Turn
    at: int


class Mixer(Base):
    """See the module. `aux` of a pass over several tokens has `visible_until_BTH`."""

    def __init__(self, place: Place, options: Options) -> None:
        super().__init__(place)
        self.options = o = options
        self.q = self._linear(place.hidden, o.heads * o.head_dim)
        self.k = self._linear(place.hidden, o.kv_heads * o.head_dim)
        self.v = self._linear(place.hidden, o.kv_heads * o.head_dim)
        self.out = self._linear(o.heads * o.head_dim, place.hidden)
        self.oracle = Oracle()
        self.slots = o.sink if o.policy == "sink" else o.budget
        # heads of all layers are numbered, so that each keeps a sample of its own
        first = place.layer * o.kv_heads
        self.head_H = range(first, first + o.kv_heads)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self._reset_linears(residual=self.out)

    def state_bytes(self, length: int) -> int:
        """Window and kept slots with their scores (bytes, float32), constant in `length`."""
        o = self.options
        slots = o.window + self.slots
        return 4 * o.kv_heads * (slots * 2 * o.head_dim + (slots if self.slots else 0))

    def flops(self, context: int) -> int:
        """Projections, and scores and sums over window and full budget."""
        o = self.options
        seen = min(context + 1, o.window + self.slots)
        return super().flops(context) + 4 * seen * o.heads * o.head_dim

    def mix(
        self, x_BLD: torch.Tensor, state: State | None, packing: Packing | None, need_state: bool
    ) -> Mixed:
        o = self.options
        position_BL = positions(x_BLD, state.cache.length_B if state else None, packing)
        q = rotate(self.q(x_BLD).unflatten(-1, (o.heads, -1)), position_BL, o.rope_theta)
        k = rotate(self.k(x_BLD).unflatten(-1, (o.kv_heads, -1)), position_BL, o.rope_theta)
        v = self.v(x_BLD).unflatten(-1, (o.kv_heads, -1))
        policy = self._policy()
        if state is None:
            y, until, cache = policy.whole(q, k, v, position_BL, packing, need_state)
            aux = {"visible_until_BTH": until}
            if packing is not None:
                aux["cu_seqlens"] = packing.cu_seqlens
            return self.out(y.flatten(2)), None if cache is None else State(cache, Turn(), 0), aux
        held = state.cache.position_BHN.shape[2]
        if not self.training and held != self.slots:
            raise ValueError(
                f"state: found {held} kept slots (made in training mode?); allowed: {self.slots}"
            )
        learning = self.training or q.requires_grad or state.cache.k_BHCD.requires_grad
        if q.shape[1] == 1 and not learning:
            at = state.turn.take(state.at)
            y = policy.step(q, k, v, position_BL, state.cache)
            return self.out(y.flatten(2)), State(state.cache, state.turn, at), {}
        state.turn.check(state.at)
        y, until, cache = policy.segment(q, k, v, position_BL, state.cache)
        return self.out(y.flatten(2)), State(cache, Turn(), 0), {"visible_until_BTH": until}

    def _policy(self) -> Scored | Received:
        o = self.options
        if self.training and o.policy in ("h2o", "tova", "oracle"):
            return Scored(Rule(o.window, o.sink, None), everything)
        if o.policy in ("h2o", "tova"):
            return Received(o.policy == "h2o", o.window, o.sink, self.slots)
        scores: dict[str, Score] = {
            "sink": nothing,
            "recency": recency,
            "random": lambda position_BL, _: random_scores(position_BL, o.seed, self.head_H),
            "oracle": self.oracle.score,
        }
        return Scored(Rule(o.window, o.sink, self.slots), scores[o.policy])
