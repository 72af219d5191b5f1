"""RWKV-4 channel mixing (arXiv 2305.13048): sigmoid(r) * W_v relu(W_k x_k)^2 on shifted tokens."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from forgetmenot.mixers.base import Mixed, Place
from forgetmenot.mixers.base import Mixer as Base
from forgetmenot.mixers.rwkv4_time import last_tokens, layer_ratios, shift
from forgetmenot_kernels.packing import Packing


@dataclass(frozen=True)
class Options:
    """Width of the hidden layer."""

    width: int  # inner width; RWKV-4 has 4 times the hidden width


class State(NamedTuple):
    """Last input [B, D]."""

    x_BD: torch.Tensor


class Mixer(Base):
    """See the module. `key` and `value` are ProSG's default targets."""

    def __init__(self, place: Place, options: Options) -> None:
        super().__init__(place)
        self.mix_rk = nn.Parameter(torch.empty(2, place.hidden))
        self.receptance = self._linear(place.hidden, place.hidden)
        self.key = self._linear(place.hidden, options.width)
        self.value = self._linear(options.width, place.hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self._reset_linears()
        _, early = layer_ratios(self.place)
        with torch.no_grad():
            ramp = (torch.arange(self.place.hidden) / self.place.hidden) ** early
            self.mix_rk.copy_(torch.stack((ramp, ramp)))

    def state_bytes(self, length: int) -> int:
        """Constant in `length` (bytes, float32)."""
        return 4 * self.place.hidden

    def mix(
        self, x_BLD: torch.Tensor, state: State | None, packing: Packing | None, need_state: bool
    ) -> Mixed:
        before = shift(x_BLD, state.x_BD if state else None, packing)
        r_mix, k_mix = self.mix_rk
        r = self.receptance(torch.lerp(before, x_BLD, r_mix))
        inner = self.key(torch.lerp(before, x_BLD, k_mix)).relu().square()
        return r.sigmoid() * self.value(inner), State(last_tokens(x_BLD, packing)), {}
