"""Gradient clipping, and AdamW over torch's fused kernel with its state as named tensors.

`torch.nn.utils.clip_grad_norm_` and `torch.optim.AdamW(fused=True)` do the same arithmetic, but
using them imports the compiler and distributed tensors, which costs every short training job
seconds; and torch's optimizer keys its state by number, not by name.
"""

import torch
from torch import Tensor, nn

from forgetmenot.train.options import Options

SLOTS = ("step", "exp_avg", "exp_avg_sq")


class AdamW:
    """AdamW on every parameter of `model` with `requires_grad` (LTE reference: one group).

    A parameter without a gradient is left alone, its step count too. The fused kernel is
    deterministic on a CPU and on a GPU.
    """

    def __init__(self, model: nn.Module, options: Options) -> None:
        self.options = options
        self.parameters: dict[str, Tensor] = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self.state: dict[str, dict[str, Tensor]] = {}

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
        for parameter in self.parameters.values():
            parameter.grad = None

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
