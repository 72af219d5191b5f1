"""Gated DeltaNet (arXiv 2412.06464): linear attention with decay and error-correcting writes."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from forgetmenot.mixers.base import Mixer as Base
from forgetmenot.mixers.base import Place, hide_padding
from forgetmenot_kernels.gated_delta_rule import gated_delta_rule
from forgetmenot_kernels.short_conv import short_conv


@dataclass(frozen=True)
class Options:
    """Heads and widths (LTE specification, section 1.2)."""

    heads: int  # heads
    key_dim: int  # width of a head's keys
    value_dim: int  # width of a head's values
    conv: int = 4  # taps of the short convolutions on q, k and v


class State(NamedTuple):
    """Memory of each head (float32) and the last inputs of the convolution."""

    memory_BHKV: torch.Tensor
    conv_BWD: torch.Tensor


class Mixer(Base):
    """S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T, q and k of unit length.

    a_t = exp(-exp(A_log) softplus(a(x) + dt_bias)), b_t = sigmoid(b(x)); the output is normalised
    per head and gated by SiLU(g(x)) (LTE specification, section 1.4).
    """

    def __init__(self, place: Place, options: Options) -> None:
        super().__init__(place)
        self.options = o = options
        self.widths = (o.heads * o.key_dim, o.heads * o.key_dim, o.heads * o.value_dim)
        self.qkv = self._linear(place.hidden, sum(self.widths))
        self.conv_weight = nn.Parameter(torch.empty(sum(self.widths), o.conv))
        self.a = self._linear(place.hidden, o.heads)
        self.b = self._linear(place.hidden, o.heads)
        self.gate = self._linear(place.hidden, o.heads * o.value_dim)
        self.A_log = nn.Parameter(torch.empty(o.heads))
        self.dt_bias = nn.Parameter(torch.empty(o.heads))
        self.norm = nn.RMSNorm(o.value_dim, eps=1e-6)
        self.out = self._linear(o.heads * o.value_dim, place.hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A ~ U(0, 16); dt log-uniform in [1e-3, 1e-1], at least 1e-4 (section 1.4)."""
        self._reset_linears()
        self.norm.reset_parameters()
        with torch.no_grad():
            bound = self.options.conv**-0.5
            self.conv_weight.uniform_(-bound, bound)
            self.A_log.uniform_(0, 16).clamp_(min=1e-4).log_()
            dt = self.dt_bias.uniform_(math.log(1e-3), math.log(1e-1)).exp().clamp(min=1e-4)
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt

    def state_bytes(self, length: int) -> int:
        """Constant in `length` (bytes, float32)."""
        o = self.options
        return 4 * (o.heads * o.key_dim * o.value_dim + (o.conv - 1) * sum(self.widths))

    def forward(
        self,
        x_BLD: torch.Tensor,
        state: State | None = None,
        *,
        mask_BL: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, State, dict[str, torch.Tensor]]:
        o = self.options
        if mask_BL is not None and state is not None:
            raise ValueError("mask: found one beside a state; allowed: only at a sequence's start")
        x_BLD = hide_padding(x_BLD, mask_BL)
        conv = state.conv_BWD if state else None
        qkv, conv = short_conv(self.qkv(x_BLD), self.conv_weight, initial_state_BWD=conv)
        q, k, v = (x.unflatten(-1, (o.heads, -1)) for x in qkv.split(self.widths, -1))
        q, k = unit_length(q), unit_length(k)
        g_BLH = -self.A_log.float().exp() * F.softplus(self.a(x_BLD).float() + self.dt_bias)
        beta_BLH = self.b(x_BLD).sigmoid()
        memory = state.memory_BHKV if state else None
        o_BLHV, memory = gated_delta_rule(q, k, v, g_BLH, beta_BLH, initial_state_BHKV=memory)
        y = self.norm(o_BLHV).flatten(2) * F.silu(self.gate(x_BLD))
        return self.out(y), State(memory, conv), {}


def unit_length(x: torch.Tensor) -> torch.Tensor:
    """X / sqrt(|x|^2 + 1e-6) over the last dimension; the sum is taken in float32 or wider."""
    squares = x.float().square() if x.dtype in (torch.bfloat16, torch.float16) else x.square()
    return x * torch.rsqrt(squares.sum(-1, keepdim=True) + 1e-6).to(x.dtype)
