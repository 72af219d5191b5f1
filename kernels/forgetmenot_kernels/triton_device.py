"""Whether tensors lie where Triton can work on them."""

import os

import torch


def check_triton_device(name: str, tensor: torch.Tensor) -> None:
    """Raise ValueError naming the argument unless Triton's compiler or interpreter can take it."""
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"{name}: found device {tensor.device}; allowed with impl 'triton': cuda "
            "(others with TRITON_INTERPRET=1 set before Triton is imported)"
        )
