"""Generator G3, svd: singular vectors of a matrix state; an ablation of G2's probes."""

import torch

from forgetmenot.prosg.backbone import Backbone
from forgetmenot.prosg.factor_generator import FactorGenerator
from forgetmenot.prosg.factors import Update
from forgetmenot.prosg.options import Options
from forgetmenot.prosg.readout import Read


class Svd(FactorGenerator):
    """left = W_A U_r, right = W_B V_r of the head-stacked M [H V, K] = U diag(s) V^T.

    The singular values are dropped (construction 6.2, G3). No gradient passes the decomposition:
    it is unbounded where singular values are close, and the first tokens leave many of them zero.
    """

    def __init__(self, backbone: Backbone, options: Options) -> None:
        layout = backbone.layout
        if not layout.heads:
            raise ValueError("generator: found 'g3' for vector states; allowed: 'g1', 'g4', 'g5'")
        rows = layout.heads * layout.value
        if options.rank > min(rows, layout.key):
            raise ValueError(f"rank: found {options.rank}; allowed: 1 to {min(rows, layout.key)}")
        super().__init__(backbone, options, rows, layout.key, 1)
        self.reset_parameters()

    def forward(self, reads: list[Read]) -> Update:
        """Factors of every block's targets."""
        update: Update = []
        for n, (read, shapes) in enumerate(zip(reads, self.shapes, strict=True)):
            assert read.matrix_BHVK is not None
            u, v = singular_vectors(read.matrix_BHVK, self.options.rank)
            update.append({name: self.factors(n, name, u, v) for name in shapes})
        return update


@torch.no_grad()
def singular_vectors(matrix_BHVK: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first vectors of the stacked heads, [B, R, H V] and [B, R, K], entries of RMS 1.

    A pair's sign, which the decomposition leaves open, is that with a positive largest entry in u.
    """
    u, _, vh = torch.linalg.svd(matrix_BHVK.flatten(1, 2), full_matrices=False)
    u_BRA, v_BRK = u.mT[:, :rank], vh[:, :rank]
    largest = u_BRA.abs().argmax(-1, keepdim=True)
    sign = u_BRA.gather(-1, largest).sign()
    return sign * u_BRA * u_BRA.shape[-1] ** 0.5, sign * v_BRK * v_BRK.shape[-1] ** 0.5
