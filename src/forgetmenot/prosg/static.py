"""Rival: a static low-rank update (LoRA), to see whether the update needs the prompt."""

from forgetmenot.prosg.backbone import Backbone
from forgetmenot.prosg.factor_generator import FactorGenerator
from forgetmenot.prosg.factors import Update
from forgetmenot.prosg.options import Options
from forgetmenot.prosg.readout import Read


class Static(FactorGenerator):
    """The same factors after every prompt, in the same place and at the same time as ProSG's.

    A generator whose heads get a constant 1 instead of a state (construction 6.7, rival 3). Source
    of LoRA: arXiv 2106.09685.
    """

    def __init__(self, backbone: Backbone, options: Options) -> None:
        super().__init__(backbone, options, 1, 1, options.rank)
        self.reset_parameters()

    def session_floats(self) -> int:
        """None: the factors are the model's, not the session's."""
        return 0

    def forward(self, reads: list[Read]) -> Update:
        """The factors, once for each sequence."""
        some = reads[0].tensors()[0]
        one = some.new_ones(len(some), 1)
        return [
            {name: self.factors(n, name, one, one) for name in shapes}
            for n, shapes in enumerate(self.shapes)
        ]
