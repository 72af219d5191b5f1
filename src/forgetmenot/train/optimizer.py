"""Gradient clipping, and AdamW over torch's fused kernel with its state as named tensors.

`torch.nn.utils.clip_grad_norm_` and `torch.optim.AdamW(fused=True)` do the same arithmetic, but
using them imports the compiler and distributed tensors, which costs every short training job
seconds; and torch's optimizer keys its state by number, not by name.
"""

import torch
from torch import Tensor, nn

from forgetmenot.errors import UserError
from forgetmenot.train.options import Options

SLOTS = ("step", "exp_avg", "exp_avg_sq")
BASE_PREFIX = "base."  # of the parameters of ProSG's base


class AdamW:
    """AdamW on every parameter of `model` with `requires_grad` (LTE reference: one group).

    A parameter without a gradient is left alone, its step count too. The fused kernel is
    deterministic on a CPU and on a GPU. ProSG's base may start later and learn at a rate of its own
    (options `base_start`, `base_lr_ratio`); UserError when they are set for a model without both a
    base and a generator to train.
    """

    def __init__(self, model: nn.Module, options: Options) -> None:
        self.options = options
        self.parameters: dict[str, Tensor] = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self.state: dict[str, dict[str, Tensor]] = {}
        self.base = {name for name in self.parameters if name.startswith(BASE_PREFIX)}
        both = self.base and len(self.base) < len(self.parameters)
        for key, default in (("base_start", 0.0), ("base_lr_ratio", 1.0)):
            if getattr(options, key) != default and not both:
                found = getattr(options, key)
                raise UserError(
                    f"train: {key}: found {found}, allowed: {default} unless a ProSG model trains "
                    "its base and its generator (trainable: all)"
                )

    def drop_frozen(self, step: int) -> None:
        """Forget the gradients of ProSG's base until `base_start` of the steps is done.

        Called before clipping, as `SparsityController.drop_frozen` and for the same reasons.
        """
        if step <= round(self.options.base_start * self.options.steps):
            for name in self.base:
                self.parameters[name].grad = None

    def _gradients(self) -> dict[str, Tensor]:
        found = {name: parameter.grad for name, parameter in self.parameters.items()}
        return {name: gradient for name, gradient in found.items() if gradient is not None}

    @torch.no_grad()
    def clip(self) -> Tensor:
        """Scale the gradients to a global norm of at most `options.clip`; return the norm before.

        A scalar on the gradients' device; infinite or NaN when a gradient is.
        """
        gradients = list(self._gradients().values())
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        scale = (self.options.clip / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)
        return norm

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Apply the gradients with this learning rate, and drop them."""
        gradients = self._gradients()
        ratio = self.options.base_lr_ratio
        if ratio == 1.0:
            self._update(gradients, learning_rate)
        else:
            base = {name: g for name, g in gradients.items() if name in self.base}
            self._update(base, ratio * learning_rate)
            rest = {name: g for name, g in gradients.items() if name not in self.base}
            self._update(rest, learning_rate)
        for parameter in self.parameters.values():
            parameter.grad = None

    def _update(self, gradients: dict[str, Tensor], learning_rate: float) -> None:
        if not gradients:
            return
        for name, gradient in gradients.items():
            if name not in self.state:
                self.state[name] = _zeros(gradient)
        steps, averages, squares = (
            [self.state[name][slot] for name in gradients] for slot in SLOTS
        )
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            [self.parameters[name] for name in gradients],
            list(gradients.values()),
            averages,
            squares,
            [],
            steps,
            lr=learning_rate,
            beta1=self.options.betas[0],
            beta2=self.options.betas[1],
            weight_decay=self.options.weight_decay,
            eps=self.options.eps,
            amsgrad=False,
            maximize=False,
        )

    def state_tensors(self) -> dict[str, Tensor]:
        """The state as `<parameter name>:<slot>` tensors, for safetensors."""
        return {
            f"{name}:{slot}": value
            for name, slots in self.state.items()
            for slot, value in slots.items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` returned."""
        self.state = {}
        for key, value in tensors.items():
            name, slot = key.rsplit(":", 1)
            self.state.setdefault(name, {})[slot] = value


def _zeros(gradient: Tensor) -> dict[str, Tensor]:
    return {
        "step": torch.zeros((), dtype=torch.float32, device=gradient.device),
        "exp_avg": torch.zeros_like(gradient),
        "exp_avg_sq": torch.zeros_like(gradient),
    }
