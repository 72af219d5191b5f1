"""RWKV-4 channel mixing (arXiv 2305.13048): sigmoid(r) * W_v relu(W_k x_k)^2 on shifted tokens."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from forgetmenot.fuse import fused
from forgetmenot.mixers.base import Mixed, Place
from forgetmenot.mixers.base import Mixer as Base
from forgetmenot.mixers.rwkv4_time import last_tokens, layer_ratios, mixed, shift, sigmoid_gated
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
        x_r, x_k = mixed(before, x_BLD, self.mix_rk)
        r, inner = self.receptance(x_r), self.key(x_k)
        v = self.value(squared_relu(inner.flatten(0, 1)).view_as(inner))
        y = sigmoid_gated(v.flatten(0, 1), r.flatten(0, 1)).view_as(v)
        return y, State(last_tokens(x_BLD, packing)), {}


@fused
def squared_relu(x_NI: torch.Tensor) -> torch.Tensor:
    """relu(x)^2."""
    return x_NI.relu().square()
