"""The summary of a block's state that dense generators start from (construction 6.2, G1)."""

import torch
import torch.nn.functional as F
from torch import nn

from forgetmenot.prosg.options import Options
from forgetmenot.prosg.readout import Layout, Read


class Trunk(nn.Module):
    """z = GELU(W_z LN(s) + e_block) in float32, W_z shared by all blocks.

    s joins the vectors of the read-out and, of a matrix M, M_h q_h joined over heads for a few
    learned queries q; each of them has a LayerNorm of its own.
    """

    def __init__(self, blocks: int, layout: Layout, options: Options) -> None:
        super().__init__()
        self.queries: nn.Parameter | None = None
        widths = [layout.width] * layout.parts
        if layout.heads:
            shape = (blocks, options.queries, layout.heads, layout.key)
            self.queries = nn.Parameter(torch.empty(shape))
            widths += [layout.heads * layout.value] * options.queries
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.linear = nn.Linear(sum(widths), options.width, bias=False)
        self.block_embedding = nn.Parameter(torch.empty(blocks, options.width))

    def reset_parameters(self) -> None:
        """Linear maps and queries N(0, 1 / fan in), block embeddings N(0, 0.02)."""
        for norm in self.norms:
            if isinstance(norm, nn.LayerNorm):
                norm.reset_parameters()
        nn.init.normal_(self.linear.weight, std=self.linear.in_features**-0.5)
        nn.init.normal_(self.block_embedding, std=0.02)
        if self.queries is not None:
            nn.init.normal_(self.queries, std=self.queries.shape[-1] ** -0.5)

    def forward(self, reads: list[Read]) -> list[torch.Tensor]:
        """The summary z [B, m] of every block."""
        return [
            F.gelu(self.linear(self._summary(n, read)) + self.block_embedding[n])
            for n, read in enumerate(reads)
        ]

    def _summary(self, n: int, read: Read) -> torch.Tensor:
        parts = [] if read.vectors_BPD is None else list(read.vectors_BPD.unbind(1))
        if self.queries is not None:
            asked_BQHV = torch.einsum("bhvk,qhk->bqhv", read.matrix_BHVK, self.queries[n])
            parts += asked_BQHV.flatten(2).unbind(1)
        return torch.cat([norm(x) for norm, x in zip(self.norms, parts, strict=True)], -1)
