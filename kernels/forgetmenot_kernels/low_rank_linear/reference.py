"""The per-sequence low-rank update: as a full matrix (the definition), and factored.

Shape suffixes: B sequences, T tokens, I inputs, O outputs, R rank.
"""

import torch
import torch.nn.functional as F


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


def merged_linear(
    x_BTI: torch.Tensor,
    weight_OI: torch.Tensor,
    left_BOR: torch.Tensor,
    right_BIR: torch.Tensor,
    scale: torch.Tensor | float,
    bias_O: torch.Tensor | None,
) -> torch.Tensor:
    """Through each sequence's own weight: the definition, and the oracle of the tests."""
    change_BOI = (scale / left_BOR.shape[-1]) * (left_BOR @ right_BIR.mT)
    y_BTO = x_BTI @ (weight_OI - change_BOI).to(x_BTI.dtype).mT
    return y_BTO if bias_O is None else y_BTO + bias_O


def factored_linear(
    x_BTI: torch.Tensor,
    weight_OI: torch.Tensor,
    left_BOR: torch.Tensor,
    right_BIR: torch.Tensor,
    scale: torch.Tensor | float,
    bias_O: torch.Tensor | None,
) -> torch.Tensor:
    """The shared product and the factored update, which read x once each."""
    return F.linear(x_BTI, weight_OI, bias_O) + factored(x_BTI, left_BOR, right_BIR, scale)
