"""The interface of what a prompt can leave behind and how it acts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from forgetmenot.prosg.apply import Hook
from forgetmenot.prosg.backbone import Backbone
from forgetmenot.prosg.readout import Read


class Generator(nn.Module):
    """From the state after the prompt to an update, and how the update acts on the model.

    An update is a nesting of lists, dicts and named tuples of tensors with the batch first, so that
    it travels in the state (`mixers.base.select_rows`). Parameters stay float32 when the model is
    cast to half precision: the state summary is float32.
    """

    checkpoints = 1  # points of the prompt whose states `make` gets
    has_factors = False  # the update is a `factors.Update`
    always_on = False  # acts without an update, as further weights do

    def make(self, checkpoints: list[list[Read]]) -> Any:
        """The update from the read-outs of every block at each point; the last is the end."""
        raise NotImplementedError

    def hooks(self, backbone: Backbone, update: Any) -> list[tuple[nn.Module, Hook]]:
        """Forward hooks that let the update act."""
        raise NotImplementedError

    def later(self, update: Any, tokens: int) -> Any:
        """The update after `tokens` more tokens; the same unless it fades."""
        return update

    def session_floats(self) -> int:
        """Floats that the update holds for one sequence."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Initialise every parameter from torch's current random state."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        def keep_wide(x: torch.Tensor) -> torch.Tensor:
            new = fn(x)
            narrows = new.dtype in (torch.bfloat16, torch.float16)
            return x.to(new.device) if narrows else new

        return super()._apply(keep_wide, recurse)
