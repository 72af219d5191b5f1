"""RWKV-4 time mixing (arXiv 2305.13048): token shift, then a decayed mean of values."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from forgetmenot.fuse import fused
from forgetmenot.mixers.base import Mixed, Place, Turn
from forgetmenot.mixers.base import Mixer as Base
from forgetmenot_kernels.packing import Packing
from forgetmenot_kernels.wkv4 import WKV4State, wkv4, wkv4_step


@dataclass(frozen=True)
class Options:
    """RWKV-4 has no options: everything is as wide as the model."""


class State(NamedTuple):
    """Last input [B, D] and the WKV sums."""

    x_BD: torch.Tensor
    wkv: WKV4State
    turn: Turn
    at: int


class Mixer(Base):
    """out(sigmoid(r) * wkv), with r, k, v linear in a mix of the current and the last token."""

    def __init__(self, place: Place, options: Options) -> None:
        super().__init__(place)
        self.mix_rkv = nn.Parameter(torch.empty(3, place.hidden))
        self.decay = nn.Parameter(torch.empty(place.hidden))
        self.bonus = nn.Parameter(torch.empty(place.hidden))
        self.receptance = self._linear(place.hidden, place.hidden)
        self.key = self._linear(place.hidden, place.hidden)
        self.value = self._linear(place.hidden, place.hidden)
        self.out = self._linear(place.hidden, place.hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """RWKV-4's schedule of decays and mixes over channels and layers."""
        self._reset_linears()
        place = self.place
        depth, early = layer_ratios(place)
        channel = torch.arange(place.hidden) / max(1, place.hidden - 1)
        with torch.no_grad():
            self.decay.copy_(-5 + 8 * channel ** (0.7 + 1.3 * depth))
            zigzag = (torch.arange(place.hidden) + 1) % 3 - 1
            self.bonus.copy_(math.log(0.3) + 0.5 * zigzag)
            ramp = torch.arange(place.hidden) / place.hidden
            mixes = (ramp ** (0.5 * early), ramp**early, ramp**early + 0.3 * depth)
            self.mix_rkv.copy_(torch.stack(mixes))

    def state_bytes(self, length: int) -> int:
        """Constant in `length`: last input and three WKV vectors (bytes, float32)."""
        return 4 * 4 * self.place.hidden

    def mix(
        self, x_BLD: torch.Tensor, state: State | None, packing: Packing | None, need_state: bool
    ) -> Mixed:
        before = shift(x_BLD, state.x_BD if state else None, packing)
        x_r, x_k, x_v = mixed(before, x_BLD, self.mix_rkv)
        r, k, v = self.receptance(x_r), self.key(x_k), self.value(x_v)
        last = last_tokens(x_BLD, packing)
        wkv_BLD, new_state = self._remember(k, v, last, state, packing)
        gated = sigmoid_gated(wkv_BLD.flatten(0, 1), r.flatten(0, 1))
        return self.out(gated.view_as(r)), new_state, {}

    def _remember(
        self,
        k_BLD: torch.Tensor,
        v_BLD: torch.Tensor,
        last_BD: torch.Tensor,
        state: State | None,
        packing: Packing | None,
    ) -> tuple[torch.Tensor, State]:
        """What the sums give for (k, v), and the new state.

        A single token without gradients changes the sums in place, so that a CUDA graph can hold
        it; otherwise they are new tensors.
        """
        decay = self.decay.exp()
        if state is None:
            wkv, sums = wkv4(k_BLD, v_BLD, decay, self.bonus, cu_seqlens=packing)
            return wkv, State(last_BD, sums, Turn(), 0)
        learning = any(x.requires_grad for x in (k_BLD, v_BLD, decay, *state.wkv))
        learning |= torch.is_grad_enabled() and self.bonus.requires_grad
        if k_BLD.shape[1] == 1 and not learning:
            at = state.turn.take(state.at)
            wkv_BD, sums = wkv4_step(k_BLD[:, 0], v_BLD[:, 0], decay, self.bonus, state.wkv)
            for old, new in zip(state.wkv, sums, strict=True):
                if new is not old:  # PyTorch's form returns new ones
                    old.copy_(new)
            return wkv_BD[:, None], state._replace(x_BD=last_BD, at=at)
        state.turn.check(state.at)
        wkv, sums = wkv4(k_BLD, v_BLD, decay, self.bonus, initial_state=state.wkv)
        return wkv, State(last_BD, sums, Turn(), 0)


def shift(
    x_BLD: torch.Tensor, last_BD: torch.Tensor | None, packing: Packing | None
) -> torch.Tensor:
    """The token before each token; `last_BD`, or zero, before the first of a sequence."""
    first = torch.zeros_like(x_BLD[:, :1]) if last_BD is None else last_BD[:, None]
    before = torch.cat((first, x_BLD[:, :-1]), 1)
    if packing is None:
        return before
    return before.masked_fill((packing.place_T == 0)[:, None], 0)


def mixed(
    before_BLD: torch.Tensor, x_BLD: torch.Tensor, share_PD: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """P mixes of the last token and the current one: `share_PD` of the current one."""
    mixes = _mixed(before_BLD.flatten(0, 1), x_BLD.flatten(0, 1), share_PD)
    return tuple(x_ND.view_as(x_BLD) for x_ND in mixes)


@fused
def _mixed(
    before_ND: torch.Tensor, x_ND: torch.Tensor, share_PD: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.lerp(before_ND.to(share_D.dtype), x_ND.to(share_D.dtype), share_D).to(x_ND.dtype)
        for share_D in share_PD
    )


@fused
def sigmoid_gated(x_ND: torch.Tensor, r_ND: torch.Tensor) -> torch.Tensor:
    """sigmoid(r) * x, in r's dtype."""
    return (r_ND.sigmoid() * x_ND).to(r_ND.dtype)


def last_tokens(x_BLD: torch.Tensor, packing: Packing | None) -> torch.Tensor:
    """The last token of each sequence [B or N, D]."""
    return x_BLD[:, -1] if packing is None else x_BLD[0, packing.cu_seqlens[1:] - 1]


def layer_ratios(place: Place) -> tuple[float, float]:
    """RWKV-4's layer / (layers - 1) and 1 - layer / layers."""
    return place.layer / max(1, place.layers - 1), 1 - place.layer / place.layers
