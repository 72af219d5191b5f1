"""SwiGLU channel mixer: y = W_down (SiLU(W_gate x) * W_up x). Stateless."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from forgetmenot.fuse import fused
from forgetmenot.mixers.base import Mixed, Place
from forgetmenot.mixers.base import Mixer as Base
from forgetmenot_kernels.packing import Packing


@dataclass(frozen=True)
class Options:
    """LTE specification, section 1.2: 8/3 of the hidden width, rounded up to 256."""

    width: int  # inner width


class Mixer(Base):
    """See the module; source: Shazeer, arXiv 2002.05202."""

    def __init__(self, place: Place, options: Options) -> None:
        super().__init__(place)
        self.gate = self._linear(place.hidden, options.width)
        self.up = self._linear(place.hidden, options.width)
        self.down = self._linear(options.width, place.hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self._reset_linears(residual=self.down)

    def state_bytes(self, length: int) -> int:
        return 0

    def mix(
        self, x_BLD: torch.Tensor, state: Any, packing: Packing | None, need_state: bool
    ) -> Mixed:
        gate, up = self.gate(x_BLD), self.up(x_BLD)
        inner = _gated(gate.flatten(0, 1), up.flatten(0, 1))
        return self.down(inner.view_as(up)), (), {}


@fused
def _gated(gate_NI: torch.Tensor, up_NI: torch.Tensor) -> torch.Tensor:
    return F.silu(gate_NI) * up_NI
