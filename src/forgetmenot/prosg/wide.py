"""Rival: a wider feed-forward layer with as many further parameters as a generator has."""

from typing import Any

import torch
from torch import nn

from forgetmenot.prosg.apply import Hook
from forgetmenot.prosg.backbone import Backbone
from forgetmenot.prosg.generator import Generator
from forgetmenot.prosg.readout import Read


class Wide(Generator):
    """Units relu(W_up x)^2 added between the first and the last target of every block.

    They act at every token, the prompt's too, and remember nothing: fine-tuning with as many
    parameters (construction 6.7, rival 4). The output side starts at zero, so that training starts
    from the base model.
    """

    always_on = True

    def __init__(self, backbone: Backbone, parameters: int) -> None:
        """`parameters`: how many to match, to the nearest unit a block."""
        super().__init__()
        self.up, self.down = nn.ModuleList(), nn.ModuleList()
        blocks = [list(block.values()) for block in backbone.targets if block]
        ends = [(block[0].in_features, block[-1].out_features) for block in blocks]
        units = max(1, round(parameters / sum(in_ + out for in_, out in ends)))
        for in_, out in ends:
            self.up.append(nn.Linear(in_, units, bias=False))
            self.down.append(nn.Linear(units, out, bias=False))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W_up N(0, 1 / fan in), W_down zero."""
        for parameter in self.up.parameters():
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        for parameter in self.down.parameters():
            nn.init.zeros_(parameter)

    def make(self, checkpoints: list[list[Read]]) -> None:
        """Nothing: no update travels in the state."""

    def hooks(self, backbone: Backbone, update: None) -> list[tuple[nn.Module, Hook]]:
        """Two hooks a block: one takes the input, one adds to the output."""
        found: list[tuple[nn.Module, Hook]] = []
        blocks = [list(block.values()) for block in backbone.targets if block]
        for block, up, down in zip(blocks, self.up, self.down, strict=True):
            taken: list[torch.Tensor] = []
            found += [(block[0], _take(taken)), (block[-1], _add(taken, up, down))]
        return found

    def session_floats(self) -> int:
        """None."""
        return 0


def _take(taken: list[torch.Tensor]) -> Hook:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        taken[:] = [args[0]]

    return hook


def _add(taken: list[torch.Tensor], up: nn.Module, down: nn.Module) -> Hook:
    def hook(_: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        x_BLI = taken[0].to(next(up.parameters()).dtype)
        added: torch.Tensor = down(up(x_BLI).relu().square())
        return output + added.to(output.dtype)

    return hook
