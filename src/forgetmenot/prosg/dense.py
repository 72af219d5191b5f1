"""Generator G1, dense: both factors are linear in a summary of the block's state."""

from forgetmenot.prosg.backbone import Backbone
from forgetmenot.prosg.factor_generator import FactorGenerator
from forgetmenot.prosg.factors import Update
from forgetmenot.prosg.options import Options
from forgetmenot.prosg.readout import Read
from forgetmenot.prosg.trunk import Trunk


class Dense(FactorGenerator):
    """left = reshape(H_left z), right = reshape(H_right z), z from the trunk (construction 6.2)."""

    def __init__(self, backbone: Backbone, options: Options) -> None:
        super().__init__(backbone, options, options.width, options.width, options.rank)
        self.trunk = Trunk(len(self.shapes), backbone.layout, options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Trunk first, then heads and eta."""
        self.trunk.reset_parameters()
        super().reset_parameters()

    def forward(self, reads: list[Read]) -> Update:
        """Factors of every block's targets."""
        blocks = zip(self.trunk(reads), self.shapes, strict=True)
        return [
            {name: self.factors(n, name, z, z) for name in shapes}
            for n, (z, shapes) in enumerate(blocks)
        ]
