"""Gated DeltaNet (arXiv 2412.06464): linear attention with decay and error-correcting writes."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from forgetmenot.fuse import fused
from forgetmenot.mixers.base import Mixed, Place, Turn
from forgetmenot.mixers.base import Mixer as Base
from forgetmenot_kernels.gated_delta_rule import gated_delta_rule, gated_delta_rule_step
from forgetmenot_kernels.packing import Packing
from forgetmenot_kernels.short_conv import short_conv, short_conv_step


@dataclass(frozen=True)
class Options:
    """Heads and widths (LTE specification, section 1.2)."""

    heads: int  # heads
    key_dim: int  # width of a head's keys
    value_dim: int  # width of a head's values
    conv: int = 4  # taps of the short convolutions on q, k and v
    gdn_init: Literal["paper", "zeros"] = "paper"  # how A_log and dt_bias start


class State(NamedTuple):
    """Memory of each head (float32) and the last inputs of the convolution."""

    memory_BHKV: torch.Tensor
    conv_BWD: torch.Tensor
    turn: Turn
    at: int


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
        """A ~ U(0, 16); dt log-uniform in [1e-3, 1e-1], at least 1e-4 (section 1.4).

        `gdn_init: zeros` starts A_log and dt_bias at 0 instead: the reference's hybrid class leaves
        them as the memory was (LTE specification, section 9, point 8).
        """
        self._reset_linears(residual=self.out)
        self.norm.reset_parameters()
        with torch.no_grad():
            bound = self.options.conv**-0.5
            self.conv_weight.uniform_(-bound, bound)
            if self.options.gdn_init == "zeros":
                self.A_log.zero_()
                self.dt_bias.zero_()
                return
            self.A_log.uniform_(0, 16).clamp_(min=1e-4).log_()
            dt = self.dt_bias.uniform_(math.log(1e-3), math.log(1e-1)).exp().clamp(min=1e-4)
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt

    def state_bytes(self, length: int) -> int:
        """Constant in `length` (bytes, float32)."""
        o = self.options
        return 4 * (o.heads * o.key_dim * o.value_dim + (o.conv - 1) * sum(self.widths))

    def flops(self, context: int) -> int:
        """Projections, and the state's decay, correction, write and read; constant in `context`."""
        o = self.options
        convolution = 2 * o.conv * sum(self.widths)
        return super().flops(context) + convolution + 7 * o.heads * o.key_dim * o.value_dim

    def mix(
        self, x_BLD: torch.Tensor, state: State | None, packing: Packing | None, need_state: bool
    ) -> Mixed:
        qkv = self.qkv(x_BLD)
        a, b = self.a(x_BLD), self.b(x_BLD)
        g, beta = _gates(a.flatten(0, 1), b.flatten(0, 1), self.A_log, self.dt_bias)
        g, beta = g.view_as(a), beta.view_as(b)
        tensors = (qkv, g, beta) if state is None else (qkv, g, beta, *state[:2])
        learning = any(x.requires_grad for x in tensors)
        learning |= torch.is_grad_enabled() and self.conv_weight.requires_grad
        new_state: State | None
        if state is not None and x_BLD.shape[1] == 1 and not learning:
            o_BHV, new_state = self._step(qkv[:, 0], g[:, 0], beta[:, 0], state)
            o_BLHV = o_BHV[:, None]
        else:
            o_BLHV, new_state = self._sequence(qkv, g, beta, state, packing, need_state)
        gate = self.gate(x_BLD)
        rows = (o_BLHV.flatten(0, 1), gate.flatten(0, 1))
        y = gated_norm(*rows, self.norm.weight, self.norm.eps)
        return self.out(y.view_as(gate)), new_state, {}

    def _sequence(
        self,
        qkv_BLW: torch.Tensor,
        g_BLH: torch.Tensor,
        beta_BLH: torch.Tensor,
        state: State | None,
        packing: Packing | None,
        need_state: bool,
    ) -> tuple[torch.Tensor, State | None]:
        """Any number of tokens; the new state is in new tensors."""
        if state is not None:
            state.turn.check(state.at)
        qkv_BLW, conv = short_conv(
            qkv_BLW,
            # Under autocast a wider weight would make q, k and v wider, and their kernels slow.
            self.conv_weight.to(qkv_BLW.dtype),
            initial_state=state.conv_BWD if state else None,
            output_final_state=need_state,
            cu_seqlens=packing,
        )
        o_BLHV, memory = gated_delta_rule(
            *self._heads(qkv_BLW),
            g_BLH,
            beta_BLH,
            qk_l2norm=True,
            initial_state=state.memory_BHKV if state else None,
            output_final_state=need_state,
            cu_seqlens=packing,
        )
        return o_BLHV, None if memory is None or conv is None else State(memory, conv, Turn(), 0)

    def _step(
        self, qkv_BW: torch.Tensor, g_BH: torch.Tensor, beta_BH: torch.Tensor, state: State
    ) -> tuple[torch.Tensor, State]:
        """One token; the state's tensors are changed in place, so that a CUDA graph can hold it."""
        at = state.turn.take(state.at)
        weight = self.conv_weight.to(qkv_BW.dtype)
        qkv_BW = short_conv_step(qkv_BW, weight, state.conv_BWD)
        o_BHV, memory = gated_delta_rule_step(
            *self._heads(qkv_BW), g_BH, beta_BH, state.memory_BHKV, qk_l2norm=True
        )
        if memory is not state.memory_BHKV:  # PyTorch's form returns a new one
            state.memory_BHKV.copy_(memory)
        return o_BHV, state._replace(at=at)

    def _heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        heads = self.options.heads
        q, k, v = (x.unflatten(-1, (heads, -1)) for x in qkv.split(self.widths, -1))
        return q, k, v


@fused
def _gates(
    a_NH: torch.Tensor, b_NH: torch.Tensor, A_log_H: torch.Tensor, dt_bias_H: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log of the decay, in float32, and the share that is written."""
    step_NH = F.softplus(at_least_float32(a_NH) + dt_bias_H)
    return -at_least_float32(A_log_H).exp() * step_NH, b_NH.sigmoid()


@fused
def gated_norm(
    o_NHV: torch.Tensor, gate_NW: torch.Tensor, weight_V: torch.Tensor, eps: float | None
) -> torch.Tensor:
    """RMS norm of each head, gated by SiLU [N, W = H x V], in the gate's dtype."""
    normed_NHV = F.rms_norm(o_NHV, weight_V.shape, weight_V, eps)
    return (normed_NHV.flatten(1) * F.silu(gate_NW)).to(gate_NW.dtype)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half precision in float32, everything else as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
