"""Generator G4, cross-layer: queries of every target attend over the states of all layers."""

import torch
import torch.nn.functional as F
from torch import nn

from forgetmenot.prosg.backbone import Backbone
from forgetmenot.prosg.factor_generator import FactorGenerator
from forgetmenot.prosg.factors import Update
from forgetmenot.prosg.options import Options
from forgetmenot.prosg.readout import Read

HEADS = 4


class CrossLayer(FactorGenerator):
    """A learned query a target and rank attends over tokens; its answer makes one column a side.

    Tokens: the vectors of every block and, of a matrix, M_h q_jh for r learned q, each with an
    embedding of its place (construction 6.2, G4; a perceiver-type aggregator).
    """

    def __init__(self, backbone: Backbone, options: Options) -> None:
        m, layout = options.width, backbone.layout
        if m % HEADS:
            raise ValueError(f"width: found {m}; allowed for 'g4': a multiple of {HEADS}")
        super().__init__(backbone, options, m, m, 1)
        blocks, slots = len(self.shapes), options.rank * layout.heads
        self.vector_in: nn.Module | None = None
        if layout.parts:
            self.vector_in = _normed_linear(layout.width, m)
            self.vector_place = nn.Parameter(torch.empty(blocks, layout.parts, m))
        self.matrix_in: nn.Module | None = None
        if layout.heads:
            shape = (blocks, options.rank, layout.heads, layout.key)
            self.reads = nn.Parameter(torch.empty(shape))
            self.matrix_in = _normed_linear(layout.value, m)
            self.matrix_place = nn.Parameter(torch.empty(blocks, slots, m))
        self.names = [f"{n}_{name}" for n, block in enumerate(self.shapes) for name in block]
        self.query = nn.Parameter(torch.empty(len(self.names) * options.rank, m))
        self.key_value = nn.Linear(m, 2 * m, bias=False)
        self.out = nn.Linear(m, m, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Linear maps and reads N(0, 1 / fan in), queries N(0, 1), places N(0, 0.02)."""
        super().reset_parameters()
        for module in (self.vector_in, self.matrix_in, self.key_value, self.out):
            for part in () if module is None else module.modules():
                if isinstance(part, nn.LayerNorm):
                    part.reset_parameters()
                elif isinstance(part, nn.Linear):
                    nn.init.normal_(part.weight, std=part.in_features**-0.5)
        nn.init.normal_(self.query)
        if self.vector_in is not None:
            nn.init.normal_(self.vector_place, std=0.02)
        if self.matrix_in is not None:
            nn.init.normal_(self.reads, std=self.reads.shape[-1] ** -0.5)
            nn.init.normal_(self.matrix_place, std=0.02)

    def forward(self, reads: list[Read]) -> Update:
        """Factors of every block's targets."""
        blocks = [torch.cat(self._tokens(n, read), 1) for n, read in enumerate(reads)]
        tokens_BNM = torch.cat(blocks, 1)
        k, v = self.key_value(tokens_BNM).chunk(2, -1)
        q = self.query.expand(len(tokens_BNM), -1, -1)
        heads = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
        answer = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        z_BNM = F.gelu(q + self.out(answer))
        parts = torch.split(z_BNM, self.options.rank, 1)
        columns = dict(zip(self.names, parts, strict=True))
        update: Update = []
        for n, shapes in enumerate(self.shapes):
            pairs = [(name, columns[f"{n}_{name}"]) for name in shapes]
            update.append({name: self.factors(n, name, z, z) for name, z in pairs})
        return update

    def _tokens(self, n: int, read: Read) -> list[torch.Tensor]:
        tokens = []
        if self.vector_in is not None:
            tokens.append(self.vector_in(read.vectors_BPD) + self.vector_place[n])
        if self.matrix_in is not None:
            asked = torch.einsum("bhvk,rhk->brhv", read.matrix_BHVK, self.reads[n])
            tokens.append(self.matrix_in(asked.flatten(1, 2)) + self.matrix_place[n])
        return tokens


def _normed_linear(in_: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(in_), nn.Linear(in_, out, bias=False))
