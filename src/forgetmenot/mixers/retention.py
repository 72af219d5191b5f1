"""Multi-scale retention of RetNet (arXiv 2307.08621): linear attention, one fixed decay a head."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from forgetmenot.mixers.base import Mixed, Place, Turn, positions
from forgetmenot.mixers.base import Mixer as Base
from forgetmenot.mixers.gdn import gated_norm
from forgetmenot.mixers.rotary import rotate
from forgetmenot_kernels.packing import Packing
from forgetmenot_kernels.retention import retention, retention_step


@dataclass(frozen=True)
class Options:
    """Heads and widths (ProSG specification, section 6.1)."""

    heads: int  # heads, each with a decay of its own
    key_dim: int  # width of a head's keys; RetNet: model width / heads
    value_dim: int | None = None  # width of a head's values; null = 2 * key_dim
    rope_theta: float | None = 10000.0  # base of the rotary angles; null = no positions

    def __post_init__(self) -> None:
        if self.key_dim % 2 and self.rope_theta is not None:
            raise ValueError(f"key_dim: found {self.key_dim}; allowed: even (or rope_theta: null)")


class State(NamedTuple):
    """Memory of each head (float32), and the tokens that each sequence has had (int64)."""

    memory_BHKV: torch.Tensor
    length_B: torch.Tensor
    turn: Turn
    at: int


class Mixer(Base):
    """S_t = (1 - 2^{-5 - h}) S_{t-1} + k_t v_t^T in head h; o_t = S_t^T q_t / sqrt(K).

    q and k are rotated by their positions, without xPos' scaling: the decay is that of the head
    alone. The output is normalised per head and gated by SiLU(g(x)).
    """

    def __init__(self, place: Place, options: Options) -> None:
        super().__init__(place)
        self.options = o = options
        self.value_dim = 2 * o.key_dim if o.value_dim is None else o.value_dim
        self.q = self._linear(place.hidden, o.heads * o.key_dim)
        self.k = self._linear(place.hidden, o.heads * o.key_dim)
        self.v = self._linear(place.hidden, o.heads * self.value_dim)
        self.gate = self._linear(place.hidden, o.heads * self.value_dim)
        self.norm = nn.RMSNorm(self.value_dim, eps=1e-5)
        self.out = self._linear(o.heads * self.value_dim, place.hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self._reset_linears(residual=self.out)
        self.norm.reset_parameters()

    def state_bytes(self, length: int) -> int:
        """Constant in `length` (bytes, float32)."""
        return 4 * self.options.heads * self.options.key_dim * self.value_dim

    def flops(self, context: int) -> int:
        """Projections, and the memory's decay, write and read; constant in `context`."""
        o = self.options
        return super().flops(context) + 5 * o.heads * o.key_dim * self.value_dim

    def mix(
        self, x_BLD: torch.Tensor, state: State | None, packing: Packing | None, need_state: bool
    ) -> Mixed:
        o, time = self.options, x_BLD.shape[1]
        position_BL = positions(x_BLD, state.length_B if state else None, packing)
        q, k, v = (
            linear(x_BLD).unflatten(-1, (o.heads, -1)) for linear in (self.q, self.k, self.v)
        )
        q, k = (rotate(x, position_BL, o.rope_theta) for x in (q, k))
        decay_H = log_decays(o.heads, x_BLD)
        memory: torch.Tensor | None
        learning = q.requires_grad or (state is not None and state.memory_BHKV.requires_grad)
        if state is not None and time == 1 and not learning:
            turn, at = state.turn, state.turn.take(state.at)
            o_BHV, memory = retention_step(q[:, 0], k[:, 0], v[:, 0], decay_H, state.memory_BHKV)
            o_BLHV = o_BHV[:, None]
        else:
            turn, at = Turn(), 0
            if state is not None:
                state.turn.check(state.at)
            o_BLHV, memory = retention(
                q,
                k,
                v,
                decay_H,
                initial_state=state.memory_BHKV if state else None,
                output_final_state=need_state,
                cu_seqlens=packing,
            )
        length_B = packing.lengths_N if packing else position_BL[:, -1] + 1
        new_state = None if memory is None else State(memory, length_B, turn, at)
        gate = self.gate(x_BLD)
        rows = (o_BLHV.flatten(0, 1), gate.flatten(0, 1))
        y = gated_norm(*rows, self.norm.weight, self.norm.eps)
        return self.out(y.view_as(gate)), new_state, {}


def log_decays(heads: int, like: torch.Tensor) -> torch.Tensor:
    """log(1 - 2^{-5 - h}) of each head [H] on the device of `like`, float32 or wider."""
    wide = torch.promote_types(like.dtype, torch.float32)
    head = torch.arange(heads, device=like.device, dtype=wide)
    return torch.log1p(-torch.exp2(-5 - head))
