"""RWKV-7 time mixing (arXiv 2503.14456): a matrix memory that unlearns what a key held before.

From scratch, and without one part: RWKV-7 mixes the first layer's values into those of later
layers, which a mixer cannot see (`mixers/base.py`). Released weights do not fit for that reason.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from forgetmenot.mixers.base import Mixed, Place, Turn
from forgetmenot.mixers.base import Mixer as Base
from forgetmenot.mixers.rwkv4_time import last_tokens, layer_ratios, mixed, shift
from forgetmenot_kernels.packing import Packing
from forgetmenot_kernels.wkv7 import wkv7, wkv7_step

FASTEST = math.exp(-0.5)  # of the decay: a step keeps at least exp(-FASTEST) = 0.545 of a channel
NORM_EPS = 64e-5


@dataclass(frozen=True)
class Options:
    """Heads, and ranks of the small maps; the ranks' defaults are those of width 768."""

    heads: int  # heads; as wide as the model when heads * head_dim is its width
    head_dim: int = 64  # width of a head's keys and values
    decay_rank: int = 64  # rank of the map to the decay
    rate_rank: int = 64  # rank of the map to the in-context learning rate
    gate_rank: int = 128  # rank of the map to the output gate


class State(NamedTuple):
    """Memory of each head, values by keys (float32), and the last input [B, D]."""

    memory_BHVK: torch.Tensor
    x_BD: torch.Tensor
    turn: Turn
    at: int


class Mixer(Base):
    """S_t = S_{t-1} (diag(e^{w_t}) - k^_t (rate_t k^_t)^T) + v_t k_t^T; what is read is S_t r_t.

    r, k, v, the decay w = -e^{-1/2} sigmoid(.), the rate and the gate each see a mix of their own
    of the current and the last token; k^ is the key at unit length. The output is normalised per
    head, gets the bonus (r . bonus k) v of the current token, and is gated (ProSG specification,
    section 6.1).
    """

    def __init__(self, place: Place, options: Options) -> None:
        super().__init__(place)
        self.options = o = options
        width = o.heads * o.head_dim
        self.mix_rwkvag = nn.Parameter(torch.empty(6, place.hidden))  # share of the last token
        self.receptance = self._linear(place.hidden, width)
        self.key = self._linear(place.hidden, width)
        self.value = self._linear(place.hidden, width)
        self.decay_down = self._linear(place.hidden, o.decay_rank)
        self.decay_up = self._linear(o.decay_rank, width)
        self.decay = nn.Parameter(torch.empty(width))
        self.rate_down = self._linear(place.hidden, o.rate_rank)
        self.rate_up = self._linear(o.rate_rank, width)
        self.rate = nn.Parameter(torch.empty(width))
        self.gate_down = self._linear(place.hidden, o.gate_rank)
        self.gate_up = self._linear(o.gate_rank, width)
        self.removal = nn.Parameter(torch.empty(width))  # scales the key that is unlearned
        self.rate_in_key = nn.Parameter(torch.empty(width))  # how far the rate scales the key
        self.bonus = nn.Parameter(torch.empty(o.heads, o.head_dim))
        self.norm = nn.GroupNorm(o.heads, width, eps=NORM_EPS)
        self.out = self._linear(width, place.hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """RWKV-7's schedule of decays and mixes; linear maps as everywhere in this project."""
        self._reset_linears(residual=self.out)
        self.norm.reset_parameters()
        depth, early = layer_ratios(self.place)
        with torch.no_grad():
            channel = torch.arange(len(self.decay)) / max(1, len(self.decay) - 1)
            self.decay.copy_(-6.5 + 5 * channel ** (0.85 + depth**0.5))
            self.rate.zero_()
            self.removal.fill_(0.85)
            self.rate_in_key.fill_(1)
            self.bonus.zero_()
            ramp = torch.arange(self.place.hidden) / self.place.hidden
            slow, fast = ramp ** (0.9 * early), ramp ** (0.2 * early)
            value = ramp ** (0.4 * early) + 0.6 * depth
            now = torch.stack((fast, slow, slow + 0.4 * depth, value, slow, fast))
            self.mix_rwkvag.copy_(1 - now)

    def state_bytes(self, length: int) -> int:
        """Constant in `length`: the memory and the last input (bytes, float32)."""
        o = self.options
        return 4 * (o.heads * o.head_dim**2 + self.place.hidden)

    def flops(self, context: int) -> int:
        """Linear maps, and the memory's decay, removal, write and read; constant in `context`."""
        o = self.options
        return super().flops(context) + 9 * o.heads * o.head_dim**2

    def mix(
        self, x_BLD: torch.Tensor, state: State | None, packing: Packing | None, need_state: bool
    ) -> Mixed:
        before = shift(x_BLD, state.x_BD if state else None, packing)
        x_r, x_w, x_k, x_v, x_a, x_g = mixed(x_BLD, before, self.mix_rwkvag)
        r, k, v = self.receptance(x_r), self.key(x_k), self.value(x_v)
        wide = torch.promote_types(x_BLD.dtype, torch.float32)
        w = self.decay_up(self.decay_down(x_w).tanh()).to(wide) + self.decay
        rate = (self.rate_up(self.rate_down(x_a)) + self.rate).sigmoid()
        gate = self.gate_up(self.gate_down(x_g).sigmoid())

        removed = F.normalize(self._heads(k * self.removal).to(wide), dim=-1)
        k = self._heads(k * (1 + (rate - 1) * self.rate_in_key))
        r, v, rate = self._heads(r), self._heads(v), self._heads(rate)
        inputs = [r, self._heads(-FASTEST * w.sigmoid()), k, v, -removed, removed * rate]
        # The decay stays in float32: it is multiplied over the whole sequence.
        inputs = [x if n == 1 else x.to(v.dtype) for n, x in enumerate(inputs)]
        o_BLHV, memory, turn, at = self._remember(inputs, state, packing, need_state)

        y = self.norm(o_BLHV.flatten(0, 1).flatten(1)).view_as(gate)
        y = y + ((r * k * self.bonus).sum(-1, keepdim=True) * v).flatten(2)
        last = last_tokens(x_BLD, packing)
        new_state = None if memory is None else State(memory, last, turn, at)
        return self.out(y * gate), new_state, {}

    def _heads(self, x_BLW: torch.Tensor) -> torch.Tensor:
        return x_BLW.view(*x_BLW.shape[:-1], self.options.heads, self.options.head_dim)

    def _remember(
        self,
        inputs: list[torch.Tensor],
        state: State | None,
        packing: Packing | None,
        need_state: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None, Turn, int]:
        """What the memory gives for (r, w, k, v, a, b), the new memory, and its turn."""
        if state is None:
            o, memory = wkv7(*inputs, output_final_state=need_state, cu_seqlens=packing)
            return o, memory, Turn(), 0
        learning = inputs[0].requires_grad or state.memory_BHVK.requires_grad
        if inputs[0].shape[1] == 1 and not learning:
            at = state.turn.take(state.at)
            r, w, k, v, a, b = (x[:, 0] for x in inputs)
            o, memory = wkv7_step(r, w, k, v, a, b, state.memory_BHVK)
            return o[:, None], memory, state.turn, at
        state.turn.check(state.at)
        o, memory = wkv7(
            *inputs, initial_state_BHVK=state.memory_BHVK, output_final_state=need_state
        )
        return o, memory, Turn(), 0
