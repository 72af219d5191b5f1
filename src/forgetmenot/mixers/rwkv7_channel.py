"""RWKV-7 channel mixing (arXiv 2503.14456): W_v relu(W_k x)^2 on shifted tokens."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from forgetmenot.mixers.base import Mixed, Place
from forgetmenot.mixers.base import Mixer as Base
from forgetmenot.mixers.rwkv4_channel import squared_relu
from forgetmenot.mixers.rwkv4_time import last_tokens, layer_ratios, mixed, shift
from forgetmenot_kernels.packing import Packing


@dataclass(frozen=True)
class Options:
    """Width of the hidden layer."""

    width: int  # inner width; RWKV-7 has 4 times the hidden width


class State(NamedTuple):
    """Last input [B, D]."""

    x_BD: torch.Tensor


class Mixer(Base):
    """RWKV-4's without the receptance. `key` and `value` are ProSG's default targets."""

    def __init__(self, place: Place, options: Options) -> None:
        super().__init__(place)
        self.mix_k = nn.Parameter(torch.empty(place.hidden))  # share of the last token
        self.key = self._linear(place.hidden, options.width)
        self.value = self._linear(options.width, place.hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """RWKV-7's schedule of mixes; linear maps as everywhere in this project."""
        self._reset_linears(residual=self.value)
        _, early = layer_ratios(self.place)
        with torch.no_grad():
            ramp = torch.arange(self.place.hidden) / self.place.hidden
            self.mix_k.copy_(1 - ramp ** (early**4))

    def state_bytes(self, length: int) -> int:
        """Constant in `length` (bytes, float32)."""
        return 4 * self.place.hidden

    def mix(
        self, x_BLD: torch.Tensor, state: State | None, packing: Packing | None, need_state: bool
    ) -> Mixed:
        before = shift(x_BLD, state.x_BD if state else None, packing)
        (x_k,) = mixed(x_BLD, before, self.mix_k[None])
        inner = self.key(x_k)
        inner = squared_relu(inner.flatten(0, 1)).view_as(inner)
        return self.value(inner), State(last_tokens(x_BLD, packing)), {}
