"""What ProSG needs to know of the model it sits on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from forgetmenot.model import LanguageModel
from forgetmenot.prosg.apply import Targets
from forgetmenot.prosg.options import Options
from forgetmenot.prosg.readout import Layout, Read, layout_of, read_state

# Channel mixers with their default targets: the inner map's input and output (construction 6.3).
CHANNEL_MIXERS: dict[str, tuple[str, ...]] = {
    "rwkv4_channel": ("key", "value"),
    "rwkv7_channel": ("key", "value"),
    "swiglu": ("up", "down"),
}


@dataclass(frozen=True)
class Backbone:
    """A model's blocks as ProSG sees them.

    `targets`: of every block the linear maps that change, by name. `mixers`: of every block the
    module whose output a read of a stored state is added to, from [B, L, hidden] to the same (alone
    or as the first of a tuple); needed by `frozen_read` and `offset` only. `read`: from the model's
    state to one read-out a block.
    """

    targets: Targets
    mixers: list[nn.Module]
    hidden: int
    layout: Layout
    read: Callable[[Any], list[Read]]

    def shapes(self) -> list[dict[str, tuple[int, int]]]:
        """The (out, in) widths of the targets."""
        return [
            {name: (linear.out_features, linear.in_features) for name, linear in block.items()}
            for block in self.targets
        ]


def backbone_of(base: LanguageModel, options: Options) -> Backbone:
    """The backbone of a LanguageModel. Raises ValueError and TypeError for an unfit one."""
    targets = _targets(base, options)
    with torch.no_grad():  # a token is enough to learn the state's shapes
        token_BL = torch.zeros(1, 1, dtype=torch.int64, device=base.embed.weight.device)
        reads = read_state(base(token_BL).state.layers)
    if len(reads) != len(targets):
        found = f"{len(targets)} {options.target_mixer!r} in {len(reads)} blocks"
        raise ValueError(f"target_mixer: found {found}; allowed: one in every block")
    mixers = list(base.layers[0::2])
    return Backbone(targets, mixers, base.spec["hidden"], layout_of(reads), read_state)


def _targets(base: LanguageModel, options: Options) -> Targets:
    names = [name for name, _ in base.spec["layers"]]
    known = [name for name in names if name in CHANNEL_MIXERS]
    mixer = options.target_mixer or (known[0] if known else "")
    if mixer not in names:
        allowed = ", ".join(sorted(set(names)))
        raise ValueError(f"target_mixer: found no {mixer!r} in the model; allowed: {allowed}")
    blocks = [module for name, module in zip(names, base.layers, strict=True) if name == mixer]
    wanted = options.targets or list(CHANNEL_MIXERS.get(mixer, ()))
    chosen = range(len(blocks)) if options.target_blocks is None else options.target_blocks
    if not set(chosen) <= set(range(len(blocks))):
        raise ValueError(f"target_blocks: found {chosen}; allowed: 0 to {len(blocks) - 1}")
    found: Targets = []
    for n, block in enumerate(blocks):
        linears = {name: m for name, m in block.named_children() if isinstance(m, nn.Linear)}
        if not wanted or not set(wanted) <= set(linears):
            missing = next((name for name in wanted if name not in linears), None)
            raise ValueError(f"targets: found {missing!r}; allowed: {', '.join(linears)}")
        found.append({name: linears[name] for name in wanted} if n in chosen else {})
    return found
