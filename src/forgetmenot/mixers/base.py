"""What every mixer shares: the contract, its place in the model, and initialisation helpers.

Shape suffixes used in this folder: B batch, L tokens, D hidden width, H heads.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Place:
    """Where a mixer stands: hidden width D, its layer of how many, and the initial spread.

    `init_std` is the standard deviation of linear maps; None means 1 / sqrt(fan in).
    """

    hidden: int
    layer: int = 0
    layers: int = 1
    init_std: float | None = None


class Mixer(nn.Module):
    """A map of a token sequence to itself with explicit state.

    `forward(x_BLD, state=None, *, mask_BL=None) -> (y_BLD, state, aux)`: `state=None` starts a
    sequence, a state continues it with any number of tokens. `mask_BL` (bool, True = token) is
    allowed with `state=None` only, for left padding; outputs at padding mean nothing.
    `aux` holds what losses and reports read.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    def forward(
        self, x_BLD: torch.Tensor, state: Any = None, *, mask_BL: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Any, dict[str, torch.Tensor]]:
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Initialise every parameter; nothing is initialised elsewhere."""
        raise NotImplementedError

    def state_bytes(self, length: int) -> int:
        """Bytes of the state of one sequence after `length` tokens, float32.

        What grows or holds content: integers that only keep the books are not counted.
        """
        raise NotImplementedError

    def _linear(self, fan_in: int, fan_out: int) -> nn.Linear:
        return nn.Linear(fan_in, fan_out, bias=False)

    def _reset_linears(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                normal_linear(module, self.place.init_std)


def normal_linear(linear: nn.Linear, std: float | None) -> None:
    """Draw a linear map's weight from N(0, std); without a std, from N(0, 1 / fan in)."""
    nn.init.normal_(linear.weight, std=linear.in_features**-0.5 if std is None else std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def start_positions(
    length_B: torch.Tensor | None, mask_BL: torch.Tensor | None, x_BLD: torch.Tensor
) -> torch.Tensor:
    """Positions [B, L] (int64) of the tokens of a segment; -1 at padding.

    `length_B` is the number of tokens seen before. Raises ValueError for a mask that is given in
    the middle of a sequence or is not left padding.
    """
    batch, time, _ = x_BLD.shape
    if mask_BL is None:
        steps = torch.arange(time, device=x_BLD.device).expand(batch, time)
        return steps if length_B is None else steps + length_B[:, None]
    if length_B is not None:
        raise ValueError("mask: found one beside a state; allowed: only at a sequence's start")
    if not bool((mask_BL[:, 1:] >= mask_BL[:, :-1]).all()):
        raise ValueError("mask: found padding after a token; allowed: left padding only")
    return mask_BL.long().cumsum(1) - 1


def hide_padding(x_BLD: torch.Tensor, mask_BL: torch.Tensor | None) -> torch.Tensor:
    """Zero the inputs at padding, so that a recurrence that starts from zero stays there."""
    return x_BLD if mask_BL is None else x_BLD * mask_BL[..., None].to(x_BLD.dtype)
