"""True gradients of the targets' weights, kept in factored form (construction 6.4, L_sg)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from forgetmenot.mixers.base import unpacked
from forgetmenot.prosg.apply import Hook, Targets, applied
from forgetmenot.prosg.factors import Factors

SOFT = 0.1  # |left right^T| below which a cosine is softened: left is zero before training


class Gradient(NamedTuple):
    """G = errors^T inputs of one linear map for each sequence, never formed.

    `inputs_BTI` are what went into the map, `errors_BTO` the gradients of the loss by what came out
    of it; both are zero at padding, detached, float32 or wider.
    """

    inputs_BTI: torch.Tensor
    errors_BTO: torch.Tensor

    def squared_norm(self) -> torch.Tensor:
        """|G|_F^2 of each sequence [B]."""
        inputs, errors = self
        return ((errors @ errors.mT) * (inputs @ inputs.mT)).sum((-2, -1))

    def inner(self, factors: Factors) -> torch.Tensor:
        """<left right^T, G> of each sequence [B]."""
        errors_BTR = self.errors_BTO @ factors.left_BOR
        return (errors_BTR * (self.inputs_BTI @ factors.right_BIR)).sum((-2, -1))

    def cosine(self, factors: Factors) -> torch.Tensor:
        """Cosine of left right^T and G, each sequence's [B]; 0 at a zero update or gradient."""
        ones = factors._replace(eta=factors.eta.new_ones(()))
        rank = factors.left_BOR.shape[-1]
        norm = (ones.squared_norm() * rank**2 + SOFT**2).sqrt()
        return self.inner(factors) / (norm * self.squared_norm().clamp(min=1e-30).sqrt())

    def relative_error(self, factors: Factors) -> torch.Tensor:
        """|left right^T / r - G|_F^2 / |G|_F^2 of each sequence [B]."""
        ones = factors._replace(eta=factors.eta.new_ones(()))
        own = self.squared_norm().clamp(min=1e-30)
        cross = self.inner(factors) / factors.left_BOR.shape[-1]
        return 1 + (ones.squared_norm() - 2 * cross) / own


def target_gradients(
    targets: Targets, loss: Callable[[], torch.Tensor], mask_BL: torch.Tensor | None = None
) -> list[dict[str, Gradient]]:
    """Every target's gradient of the scalar that `loss` computes by running the model.

    `mask_BL` is the padding mask that the run uses, if any: the layers then see one packed row.
    Parameters get no gradient, and nothing has to require one.
    """
    seen: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = {}
    hooks = [
        (linear, _tap(seen, (n, name)))
        for n, block in enumerate(targets)
        for name, linear in block.items()
    ]
    with torch.enable_grad():
        with applied(hooks):
            value = loss()
        taps = [tap for _, tap in seen.values()]
        errors = dict(zip(seen, torch.autograd.grad(value, taps), strict=True))

    def rows(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        return x if mask_BL is None else unpacked(x, mask_BL)

    return [
        {name: Gradient(rows(seen[n, name][0]), rows(errors[n, name])) for name in block}
        for n, block in enumerate(targets)
    ]


def _tap(
    seen: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]], key: tuple[int, str]
) -> Hook:
    def hook(_: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        # a zero of its own to differentiate by, as a frozen model's outputs carry no gradient
        tap = torch.zeros_like(output).requires_grad_()
        seen[key] = (args[0], tap)
        return output + tap

    return hook
