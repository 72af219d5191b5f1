"""The short causal convolution: its definition as a loop, and as a sum of shifted products."""

import torch
import torch.nn.functional as F


def recurrent(
    x_BTD: torch.Tensor, weight_DW: torch.Tensor, initial_state_BWD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step a token over a sliding list of inputs: the oracle of the tests."""
    taps = weight_DW.shape[-1]
    recent = list(initial_state_BWD.unbind(1))
    outputs = []
    for x_BD in x_BTD.unbind(1):
        recent.append(x_BD)
        outputs.append(F.silu((torch.stack(recent[-taps:], -1) * weight_DW).sum(-1)))
    return torch.stack(outputs, 1), torch.stack(recent[len(recent) - taps + 1 :], 1)


def shifted(
    x_BTD: torch.Tensor, weight_DW: torch.Tensor, initial_state_BWD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """W shifted products; on a CPU faster than a grouped convolution, forward and backward."""
    time, taps = x_BTD.shape[1], weight_DW.shape[-1]
    padded = torch.cat((initial_state_BWD.to(x_BTD.dtype), x_BTD), 1)
    y_BTD = padded[:, :time] * weight_DW[:, 0]
    for w in range(1, taps):
        y_BTD = y_BTD + padded[:, w : w + time] * weight_DW[:, w]
    return F.silu(y_BTD), padded[:, time:]
