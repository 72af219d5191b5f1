"""What generators of low-rank factors share: heads, step sizes, turns, the limit on the norm."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from forgetmenot.prosg.apply import Adder, Hook, Targets, clipped
from forgetmenot.prosg.backbone import Backbone
from forgetmenot.prosg.factors import Factors, Update, total
from forgetmenot.prosg.generator import Generator
from forgetmenot.prosg.options import Options
from forgetmenot.prosg.readout import Read


class FactorGenerator(Generator):
    """A generator of low-rank factors. Linear heads end it, one a target for each side.

    The left heads start at zero, so that the update is zero before training: the first gradient
    step on them is a gradient step on W, projected on the span of `right` (specification, F3).
    """

    has_factors = True

    def __init__(
        self, backbone: Backbone, options: Options, left_in: int, right_in: int, columns: int
    ) -> None:
        """`left_in`, `right_in`: widths into the heads. `columns`: factor columns of a head."""
        super().__init__()
        self.options, self.shapes, self.columns = options, backbone.shapes(), columns
        # one entry a block and target, "<block>_<name>"; heads may be shared over blocks
        self.left, self.right, self.eta = nn.ModuleDict(), nn.ModuleDict(), nn.ParameterDict()
        self.step = nn.ModuleDict()
        for n, block in enumerate(self.shapes):
            for name, (out, in_) in block.items():
                if self._head(n, name) not in self.left:
                    self.left[self._head(n, name)] = self._map(left_in, out * columns)
                    self.right[self._head(n, name)] = self._map(right_in, in_ * columns)
                self._check_shared(n, name, (out, in_))
                if options.step == "learned":
                    self.eta[f"{n}_{name}"] = nn.Parameter(torch.empty(()))
                elif options.step == "state":
                    self.step[f"{n}_{name}"] = nn.Linear(left_in, 1)

    def make(self, checkpoints: list[list[Read]]) -> Update:
        """Factors of every block's targets from the last read-outs."""
        return self.fading(self(checkpoints[-1]))

    def fading(self, update: Update) -> Update:
        """The update with an age of 0 and the option's half-life, where there is one."""
        if self.options.half_life is None:
            return update
        return [
            {
                name: f._replace(
                    age=f.left_BOR.new_zeros(()),
                    half_life=f.left_BOR.new_tensor(self.options.half_life),
                )
                for name, f in block.items()
            }
            for block in update
        ]

    def hooks(self, backbone: Backbone, update: Update) -> list[tuple[nn.Module, Hook]]:
        """One hook a target."""
        return [
            (block[name], Adder(f))
            for block, factors in zip(backbone.targets, update, strict=True)
            for name, f in factors.items()
        ]

    def combine(self, earlier: Update, later: Update) -> Update:
        """What accumulates over turns (options `turns`, `turn_decay`, `turn_rank`)."""
        o = self.options
        weight = o.turn_decay if o.turns == "decay" else 1.0
        return [
            {name: total(old[name], new[name], weight, o.turn_rank) for name in new}
            for old, new in zip(earlier, later, strict=True)
        ]

    def later(self, update: Update, tokens: int) -> Update:
        """Factors that fade are older by `tokens` (option `half_life`)."""
        if self.options.half_life is None:
            return update
        return [{name: f.later(tokens) for name, f in block.items()} for block in update]

    def clip(self, targets: Targets, update: Update) -> Update:
        """The update within the limit for inference."""
        return clipped(targets, update, self.options.clip)

    def session_floats(self) -> int:
        """Both factors of every target."""
        return self.options.rank * sum(sum(s) for block in self.shapes for s in block.values())

    def reset_parameters(self) -> None:
        """Left heads zero, right heads N(0, 1 / fan in), eta as the options say."""
        for head in self.left.values():
            *inner, last = _linears(head)
            for linear in inner:
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(last.weight)
        for head in self.right.values():
            for linear in _linears(head):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        for parameter in self.eta.parameters():
            nn.init.constant_(parameter, self.options.step_init)
        for name, parameter in self.step.named_parameters():
            start = math.log(math.expm1(self.options.step_init)) if name.endswith("bias") else 0.0
            nn.init.constant_(parameter, start)

    def _head(self, n: int, name: str) -> str:
        return name if self.options.shared else f"{n}_{name}"

    def _map(self, in_: int, out: int) -> nn.Module:
        middle = self.options.bottleneck
        if middle is None:
            return nn.Linear(in_, out, bias=False)
        return nn.Sequential(nn.Linear(in_, middle, bias=False), nn.Linear(middle, out, bias=False))

    def _check_shared(self, n: int, name: str, shape: tuple[int, int]) -> None:
        out = _linears(self.left[self._head(n, name)])[-1].out_features // self.columns
        in_ = _linears(self.right[self._head(n, name)])[-1].out_features // self.columns
        if (out, in_) != shape:
            raise ValueError(
                f"shared: found {name} of shape {shape} beside {(out, in_)}; allowed: equal shapes"
            )

    def factors(self, n: int, name: str, left: torch.Tensor, right: torch.Tensor) -> Factors:
        """A target's factors from what goes into its heads.

        [B, m] for heads that make all columns at once, [B, R, m] for heads that make one each.
        """
        head = self._head(n, name)
        sides = (self.left[head](left), self.right[head](right))
        if left.dim() == 2:
            left_BOR, right_BIR = (side.unflatten(-1, (-1, self.columns)) for side in sides)
        else:
            left_BOR, right_BIR = (side.mT for side in sides)
        if f"{n}_{name}" in self.eta:
            return Factors(left_BOR, right_BIR, self.eta[f"{n}_{name}"])
        if f"{n}_{name}" not in self.step:
            return Factors(left_BOR, right_BIR, left.new_tensor(self.options.step_init))
        # each sequence's own step is part of its left factor
        summary_BM = left if left.dim() == 2 else left.mean(1)
        step_B11 = F.softplus(self.step[f"{n}_{name}"](summary_BM))[..., None]
        return Factors(left_BOR * step_B11, right_BIR, left.new_ones(()))


def _linears(head: nn.Module) -> list[nn.Linear]:
    return [module for module in head.modules() if isinstance(module, nn.Linear)]
