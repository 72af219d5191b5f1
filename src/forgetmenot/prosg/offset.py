"""Rival: a state offset, generated from the state after the prompt and added at every step."""

import torch
from torch import nn

from forgetmenot.prosg.backbone import Backbone
from forgetmenot.prosg.options import Options
from forgetmenot.prosg.reader import ReadingGenerator
from forgetmenot.prosg.readout import Layout, Read
from forgetmenot.prosg.trunk import Trunk


class Offset(ReadingGenerator):
    """o_t + read(h', query_t) with one constant h' a block, made from G1's summary of the state.

    h' is a vector [D] for vector states and a matrix of rank r in every head for matrix states. It
    adds to what is read, not to what is carried on, as in state-offset tuning (arXiv 2503.03499;
    construction 6.7, rival 8). Its value side starts at zero: before training nothing changes.
    """

    def __init__(self, backbone: Backbone, options: Options) -> None:
        super().__init__()
        whole, self.rank = backbone.layout, options.rank
        if whole.heads:
            self.layout = whole._replace(parts=0, width=0)
            sizes = (whole.heads * whole.value * self.rank, whole.heads * whole.key * self.rank)
        else:
            self.layout = Layout(1, backbone.hidden)
            sizes = (backbone.hidden, 0)
        blocks = range(len(backbone.mixers))
        self.trunk = Trunk(len(blocks), whole, options)
        self.left = nn.ModuleList(nn.Linear(options.width, sizes[0], bias=False) for _ in blocks)
        self.right = nn.ModuleList(
            nn.Linear(options.width, sizes[1], bias=False) for _ in blocks if sizes[1]
        )
        self._make_readers(backbone, self.layout, options.reads, normed=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Left heads zero, right heads N(0, 1 / fan in)."""
        self.trunk.reset_parameters()
        for parameter in self.left.parameters():
            nn.init.zeros_(parameter)
        for parameter in self.right.parameters():
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        for reader in self.all_readers():
            reader.reset(out=True)

    def make(self, checkpoints: list[list[Read]]) -> list[Read]:
        """The offset h' of every block."""
        z_BM = self.trunk(checkpoints[-1])
        if not self.layout.heads:
            return [Read(left(z)[:, None]) for left, z in zip(self.left, z_BM, strict=True)]
        made = []
        for left, right, z in zip(self.left, self.right, z_BM, strict=True):
            a_BHVR = left(z).unflatten(-1, (self.layout.heads, -1, self.rank))
            b_BHKR = right(z).unflatten(-1, (self.layout.heads, -1, self.rank))
            made.append(Read(None, torch.einsum("bhvr,bhkr->bhvk", a_BHVR, b_BHKR) / self.rank))
        return made

    def session_floats(self) -> int:
        """The offset itself: a vector, or the factors of its matrices."""
        parts, width, heads, value, key = self.layout
        factors = heads * (value + key) * self.rank if heads else parts * width
        return len(self.readers) * factors
