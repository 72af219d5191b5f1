"""Generator G5, multi-checkpoint: factors from the states at several points of the prompt."""

import torch

from forgetmenot.prosg.backbone import Backbone
from forgetmenot.prosg.dense import Dense
from forgetmenot.prosg.factor_generator import FactorGenerator
from forgetmenot.prosg.factors import Factors, Update
from forgetmenot.prosg.options import Options
from forgetmenot.prosg.probe import Probe
from forgetmenot.prosg.readout import Read


class MultiPoint(FactorGenerator):
    """G1 (vector states) or G2 (matrix states) at each of J points, the factors joined: rank J r.

    It sees states that the end state has partly forgotten, so it is a method of its own and must be
    reported as one (construction 6.2, G5).
    """

    def __init__(self, backbone: Backbone, options: Options) -> None:
        super(FactorGenerator, self).__init__()
        self.options = options
        self.checkpoints = options.checkpoints
        single = Probe if backbone.layout.heads else Dense
        self.single: FactorGenerator = single(backbone, options)

    def reset_parameters(self) -> None:
        """As the generator of a single point."""
        self.single.reset_parameters()

    def session_floats(self) -> int:
        """As much at every point."""
        return self.checkpoints * self.single.session_floats()

    def make(self, checkpoints: list[list[Read]]) -> Update:
        """Joined factors. Raises ValueError for another number of points than the options say."""
        if len(checkpoints) != self.checkpoints:
            raise ValueError(
                f"state: found {len(checkpoints)} points of the prompt; allowed: "
                f"{self.checkpoints}, which a prompt has that is read in one call from its start"
            )
        updates = [self.single(reads) for reads in checkpoints]
        joined = [
            {name: _joined([update[n][name] for update in updates]) for name in block}
            for n, block in enumerate(updates[0])
        ]
        return self.fading(joined)


def _joined(points: list[Factors]) -> Factors:
    left = torch.cat([factors.left_BOR for factors in points], -1)
    return Factors(left, torch.cat([f.right_BIR for f in points], -1), points[0].eta)
