"""Generator G1: from the state after the prompt to low-rank factors (construction 6.2)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from forgetmenot.prosg.options import Options
from forgetmenot.prosg.readout import WIDTH


class Factors(NamedTuple):
    """W' = W - (eta / r) left right^T of one linear map: left [B, O, R], right [B, I, R]."""

    left_BOR: torch.Tensor
    right_BIR: torch.Tensor
    eta: torch.Tensor

    def squared_norm(self) -> torch.Tensor:
        """|dW|_F^2 of each sequence [B], without forming dW."""
        inner = (self.left_BOR.mT @ self.left_BOR) * (self.right_BIR.mT @ self.right_BIR)
        return (self.eta / self.left_BOR.shape[-1]).square() * inner.sum((-2, -1))


class Generator(nn.Module):
    """z = GELU(W_z LN(s) + e_layer); left = H_left z, right = H_right z, in float32.

    H_left starts at zero, so that the update is zero before training: the first gradient step on
    it is a gradient step on W, projected on the span of `right` (specification, fact F3).
    """

    def __init__(
        self, hidden: int, shapes: list[dict[str, tuple[int, int]]], options: Options
    ) -> None:
        """`shapes`: for each block, the (out, in) widths of its targets by name."""
        super().__init__()
        self.options, self.shapes = options, shapes
        m, r = options.width, options.rank
        self.hidden = hidden
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(WIDTH))
        self.trunk = nn.Linear(WIDTH * hidden, m, bias=False)
        self.layer_embedding = nn.Parameter(torch.empty(len(shapes), m))
        # one entry a block and target, "<block>_<name>"
        self.left, self.right, self.eta = nn.ModuleDict(), nn.ModuleDict(), nn.ParameterDict()
        for n, block in enumerate(shapes):
            for name, (out, in_) in block.items():
                self.left[f"{n}_{name}"] = nn.Linear(m, out * r, bias=False)
                self.right[f"{n}_{name}"] = nn.Linear(m, in_ * r, bias=False)
                self.eta[f"{n}_{name}"] = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """H_left zero, H_right N(0, 1 / m), eta one."""
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        nn.init.normal_(self.trunk.weight, std=self.trunk.in_features**-0.5)
        nn.init.normal_(self.layer_embedding, std=0.02)
        for parameter in self.left.parameters():
            nn.init.zeros_(parameter)
        for parameter in self.right.parameters():
            nn.init.normal_(parameter, std=self.options.width**-0.5)
        for parameter in self.eta.parameters():
            nn.init.ones_(parameter)

    def forward(self, read_BS: list[torch.Tensor]) -> list[dict[str, Factors]]:
        """Factors of every block's targets from its read-out [B, 4D] (`readout.read_state`)."""
        r = self.options.rank
        blocks = []
        for n, (s, shapes) in enumerate(zip(read_BS, self.shapes, strict=True)):
            quarters = s.split(self.hidden, -1)
            normed = [norm(q) for norm, q in zip(self.norms, quarters, strict=True)]
            z = F.gelu(self.trunk(torch.cat(normed, -1)) + self.layer_embedding[n])
            block = {}
            for name in shapes:
                key = f"{n}_{name}"
                left, right = self.left[key](z), self.right[key](z)
                factors = (left.unflatten(-1, (-1, r)), right.unflatten(-1, (-1, r)))
                block[name] = Factors(*factors, self.eta[key])
            blocks.append(block)
        return blocks
