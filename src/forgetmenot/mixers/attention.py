"""Softmax attention with rotary positions: full, or over a sliding window (SWA)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from forgetmenot.mixers.base import Mixed, Place, Turn, positions
from forgetmenot.mixers.base import Mixer as Base
from forgetmenot.mixers.growing_cache import GrowingCache, append, start_cache
from forgetmenot.mixers.rotary import rotate
from forgetmenot.mixers.window_cache import Rule
from forgetmenot_kernels.lte_attention import Cache, Columns, attend, lte_attention, read_slots
from forgetmenot_kernels.packing import Packing


@dataclass(frozen=True)
class Options:
    """Heads, widths and reach (LTE specification, section 1.2)."""

    heads: int  # query heads
    kv_heads: int  # key/value heads; must divide `heads`
    head_dim: int  # width of a head, even
    window: int | None = None  # tokens seen, the current one included; null = all
    rope_theta: float | None = 10000.0  # base of the rotary angles; null = no positions

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: found {self.kv_heads}; allowed: divisors of {self.heads}")


class WindowState(NamedTuple):
    """The last W keys and values."""

    cache: Cache
    turn: Turn
    at: int


class Mixer(Base):
    """See the module; the visibility rule is that of `forgetmenot_kernels.lte_attention`."""

    def __init__(self, place: Place, options: Options) -> None:
        super().__init__(place)
        self.options = o = options
        self.q = self._linear(place.hidden, o.heads * o.head_dim)
        self.k = self._linear(place.hidden, o.kv_heads * o.head_dim)
        self.v = self._linear(place.hidden, o.kv_heads * o.head_dim)
        self.out = self._linear(o.heads * o.head_dim, place.hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self._reset_linears(residual=self.out)

    def state_bytes(self, length: int) -> int:
        """Keys and values of all tokens, or of the window's slots (bytes, float32)."""
        o = self.options
        return 4 * 2 * (o.window or length) * o.kv_heads * o.head_dim

    def flops(self, context: int) -> int:
        """Projections, and scores and sums over the tokens seen."""
        o = self.options
        seen = min(context + 1, o.window or context + 1)
        return super().flops(context) + 4 * seen * o.heads * o.head_dim

    def mix(
        self,
        x_BLD: torch.Tensor,
        state: GrowingCache | WindowState | None,
        packing: Packing | None,
        need_state: bool,
    ) -> Mixed:
        o = self.options
        length_B = None
        if state is not None:
            length_B = (state.cache if isinstance(state, WindowState) else state).length_B
        position_BL = positions(x_BLD, length_B, packing)
        q = rotate(self.q(x_BLD).unflatten(-1, (o.heads, -1)), position_BL, o.rope_theta)
        k = rotate(self.k(x_BLD).unflatten(-1, (o.kv_heads, -1)), position_BL, o.rope_theta)
        v = self.v(x_BLD).unflatten(-1, (o.kv_heads, -1))
        new_state: GrowingCache | WindowState | None = None
        if state is None:
            y = lte_attention(q, k, v, window=o.window, cu_seqlens=packing)
            if need_state and o.window is None:
                new_state = start_cache(k, v, packing)
            elif need_state and o.window is not None:
                cache = Rule(o.window).start(k, v, None, None, packing)
                new_state = WindowState(cache, Turn(), 0)
        elif isinstance(state, WindowState):
            y, new_state = self._in_window(q, k, v, position_BL, state)
        else:
            new_state = append(state, k, v)
            y = over_everything(q, new_state, position_BL)
        return self.out(y.flatten(2)), new_state, {}

    def _in_window(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        position_BL: torch.Tensor,
        state: WindowState,
    ) -> tuple[torch.Tensor, WindowState]:
        assert self.options.window is not None
        rule = Rule(self.options.window)
        if q.shape[1] == 1 and not (q.requires_grad or state.cache.k_BHCD.requires_grad):
            at = state.turn.take(state.at)
            return rule.step(q, k, v, state.cache), WindowState(state.cache, state.turn, at)
        state.turn.check(state.at)
        score = k.new_zeros(k.shape[:3])
        y, _, cache = rule.segment(q, k, v, score, position_BL, state.cache)
        return y, WindowState(cache, Turn(), 0)


def over_everything(
    q_BLGD: torch.Tensor, cache: GrowingCache, position_BL: torch.Tensor
) -> torch.Tensor:
    """Full attention of the last L tokens of each sequence over all that the cache holds."""
    k_BHCD, v_BHCD = (x[:, :, : cache.longest] for x in (cache.k_BHCD, cache.v_BHCD))
    slots = torch.arange(cache.longest, device=q_BLGD.device)
    if q_BLGD.shape[1] == 1 and not q_BLGD.requires_grad:
        seen_BHC = (slots <= position_BL)[:, None].expand(-1, k_BHCD.shape[1], -1)
        scale = q_BLGD.shape[-1] ** -0.5
        return read_slots(q_BLGD[:, 0], k_BHCD, v_BHCD, seen_BHC, scale)[0][:, None]
    columns = Columns(
        k_BHCD.movedim(1, 2), v_BHCD.movedim(1, 2), slots.expand(len(q_BLGD), -1)[..., None]
    )
    return attend(q_BLGD, columns, position_BL, window=None)
