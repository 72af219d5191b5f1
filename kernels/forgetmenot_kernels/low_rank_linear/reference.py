"""The per-sequence low-rank update: as a full matrix (the definition), and factored."""

import torch


def merged(
    x_BTI: torch.Tensor,
    left_BOR: torch.Tensor,
    right_BIR: torch.Tensor,
    scale: torch.Tensor | float,
) -> torch.Tensor:
    """Through the full change of the weight: the oracle of the tests."""
    change_BOI = -(scale / left_BOR.shape[-1]) * (left_BOR @ right_BIR.mT)
    return (x_BTI.to(change_BOI.dtype) @ change_BOI.mT).to(x_BTI.dtype)


def factored(
    x_BTI: torch.Tensor,
    left_BOR: torch.Tensor,
    right_BIR: torch.Tensor,
    scale: torch.Tensor | float,
) -> torch.Tensor:
    """Two products of width r; the change of the weight is never formed."""
    inner_BTR = x_BTI.to(right_BIR.dtype) @ right_BIR
    return (inner_BTR @ left_BOR.mT * (-scale / left_BOR.shape[-1])).to(x_BTI.dtype)
