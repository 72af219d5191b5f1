"""Which tensors Triton works on."""

import os

import torch


def check_triton_device(name: str, tensor: torch.Tensor) -> None:
    """Raise ValueError naming the argument unless Triton's compiler or interpreter can take it."""
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"{name}: found device {tensor.device}; allowed with impl 'triton': cuda "
            "(others with TRITON_INTERPRET=1 set before Triton is imported)"
        )


def default_form(tensor: torch.Tensor, otherwise: str) -> str:
    """The form that an operator takes unasked: "triton" for CUDA tensors, except float64.

    The kernels sum in float32, so float64, which is asked for to be exact, has the PyTorch form.
    """
    return "triton" if tensor.is_cuda and tensor.dtype != torch.float64 else otherwise
