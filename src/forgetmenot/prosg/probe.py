"""Generator G2, probe: learned probes read a matrix state from its value side and its key side."""

import torch
import torch.nn.functional as F
from torch import nn

from forgetmenot.prosg.backbone import Backbone
from forgetmenot.prosg.factor_generator import FactorGenerator
from forgetmenot.prosg.factors import Update
from forgetmenot.prosg.options import Options
from forgetmenot.prosg.readout import Read


class Probe(FactorGenerator):
    """left = W_A [u_1 .. u_r], right = W_B [v_1 .. v_r] (construction 6.2, G2).

    u_j = RMS(concat_h M_h q_jh), v_j = RMS(concat_h M_h^T p_jh). A true weight gradient is a sum of
    (output error) x (input)^T over tokens and M a decayed sum of v k^T over the same tokens, so the
    two sides of M give vectors of the two kinds that are needed.
    """

    def __init__(self, backbone: Backbone, options: Options) -> None:
        layout = backbone.layout
        if not layout.heads:
            raise ValueError("generator: found 'g2' for vector states; allowed: 'g1', 'g4', 'g5'")
        sides = (layout.heads * layout.value, layout.heads * layout.key)
        super().__init__(backbone, options, *sides, 1)
        self.key_probes, self.value_probes = nn.ParameterDict(), nn.ParameterDict()
        for n, block in enumerate(self.shapes):
            for name in block:
                shape = (options.rank, layout.heads)
                self.key_probes[f"{n}_{name}"] = nn.Parameter(torch.empty(*shape, layout.key))
                self.value_probes[f"{n}_{name}"] = nn.Parameter(torch.empty(*shape, layout.value))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Probes N(0, 1 / their width), heads as the base class."""
        super().reset_parameters()
        for probe in (*self.key_probes.parameters(), *self.value_probes.parameters()):
            nn.init.normal_(probe, std=probe.shape[-1] ** -0.5)

    def forward(self, reads: list[Read]) -> Update:
        """Factors of every block's targets."""
        update: Update = []
        for n, (read, shapes) in enumerate(zip(reads, self.shapes, strict=True)):
            block = {}
            for name in shapes:
                q_RHK, p_RHV = self.key_probes[f"{n}_{name}"], self.value_probes[f"{n}_{name}"]
                u_BRA = torch.einsum("bhvk,rhk->brhv", read.matrix_BHVK, q_RHK).flatten(2)
                v_BRC = torch.einsum("bhvk,rhv->brhk", read.matrix_BHVK, p_RHV).flatten(2)
                block[name] = self.factors(n, name, unit(u_BRA), unit(v_BRC))
            update.append(block)
        return update


def unit(x: torch.Tensor) -> torch.Tensor:
    """Root mean square 1 over the last axis; zero stays zero, with finite gradients."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-12)
