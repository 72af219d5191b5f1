"""Softmax attention with rotary positions: full, or over a sliding window (SWA)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from forgetmenot.mixers.base import Mixer as Base
from forgetmenot.mixers.base import Place, start_positions
from forgetmenot.mixers.rotary import rotate
from forgetmenot_kernels.lte_attention import Columns, attend


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


class State(NamedTuple):
    """Rotated keys and values of the last tokens (all, or W of them) and the tokens seen."""

    k_BCHD: torch.Tensor
    v_BCHD: torch.Tensor
    position_BC: torch.Tensor
    length_B: torch.Tensor


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
        self._reset_linears()

    def state_bytes(self, length: int) -> int:
        """Keys and values of the visible tokens (bytes, float32)."""
        o = self.options
        tokens = length if o.window is None else min(length, o.window)
        return 4 * 2 * tokens * o.kv_heads * o.head_dim

    def forward(
        self,
        x_BLD: torch.Tensor,
        state: State | None = None,
        *,
        mask_BL: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, State, dict[str, torch.Tensor]]:
        o = self.options
        position_BL = start_positions(state.length_B if state else None, mask_BL, x_BLD)
        q = rotate(self.q(x_BLD).unflatten(-1, (o.heads, -1)), position_BL, o.rope_theta)
        k = rotate(self.k(x_BLD).unflatten(-1, (o.kv_heads, -1)), position_BL, o.rope_theta)
        v = self.v(x_BLD).unflatten(-1, (o.kv_heads, -1))
        position_BC = position_BL
        fresh = state is None and mask_BL is None
        if state is not None:
            k, v = torch.cat((state.k_BCHD, k), 1), torch.cat((state.v_BCHD, v), 1)
            position_BC = torch.cat((state.position_BC, position_BL), 1)
        if fresh and (o.window is None or o.window >= x_BLD.shape[1]):
            y = causal(q, k, v)
        else:
            y = attend(q, Columns(k, v, position_BC[..., None]), position_BL, window=o.window)
        if o.window is not None:
            k, v, position_BC = (x[:, -o.window :] for x in (k, v, position_BC))
        state = State(k, v, position_BC, position_BL[:, -1] + 1)
        return self.out(y.flatten(2)), state, {}


def causal(q_BLGD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor) -> torch.Tensor:
    """Full causal attention of a whole sequence, without building a mask."""
    groups = q_BLGD.shape[2] // k_BLHD.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q_BLGD, k_BLHD, v_BLHD))
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
