"""The short causal convolution: its definition as a loop, and as a sum of shifted products."""

import torch
import torch.nn.functional as F

from forgetmenot_kernels.packing import Packing


def recurrent(
    x_BTD: torch.Tensor, weight_DW: torch.Tensor, initial_state_BWD: torch.Tensor
) -> torch.Tensor:
    """One step a token over a sliding list of inputs: the oracle of the tests."""
    taps = weight_DW.shape[-1]
    recent = list(initial_state_BWD.unbind(1))
    outputs = []
    for x_BD in x_BTD.unbind(1):
        recent.append(x_BD)
        outputs.append(F.silu((torch.stack(recent[-taps:], -1) * weight_DW).sum(-1)))
    return torch.stack(outputs, 1)


def shifted(
    x_BTD: torch.Tensor, weight_DW: torch.Tensor, initial_state_BWD: torch.Tensor
) -> torch.Tensor:
    """W shifted products; on a CPU faster than a grouped convolution, forward and backward."""
    time, taps = x_BTD.shape[1], weight_DW.shape[-1]
    padded = torch.cat((initial_state_BWD, x_BTD), 1)
    y_BTD = padded[:, :time] * weight_DW[:, 0]
    for w in range(1, taps):
        y_BTD = torch.addcmul(y_BTD, padded[:, w : w + time], weight_DW[:, w])
    return F.silu(y_BTD)


def step(x_BD: torch.Tensor, weight_DW: torch.Tensor, state_BWD: torch.Tensor) -> torch.Tensor:
    """One token; the state is moved on by one input in place."""
    recent_BWD = torch.cat((state_BWD.to(x_BD.dtype), x_BD[:, None]), 1)
    state_BWD.copy_(recent_BWD[:, 1:])
    return F.silu((recent_BWD * weight_DW.T).sum(1))


def last_inputs(
    x_BTD: torch.Tensor, initial_state_BWD: torch.Tensor, packing: Packing | None
) -> torch.Tensor:
    """The last W - 1 inputs of each sequence: rows of x, or the documents of its one row."""
    count = initial_state_BWD.shape[1]
    if packing is None:
        short = x_BTD[:, max(0, x_BTD.shape[1] - count) :]
        # a copy: a view would keep all inputs alive
        return torch.cat((initial_state_BWD, short), 1)[:, short.shape[1] :].clone()
    slots_W = torch.arange(count, device=x_BTD.device)
    places_NW = packing.lengths_N[:, None] - count + slots_W
    tokens_NW = (packing.cu_seqlens[:-1, None] + places_NW).clamp(min=0)
    documents_N1 = torch.arange(packing.documents, device=x_BTD.device)[:, None]
    # negative places are the state's, counted from its end
    earlier = initial_state_BWD[documents_N1, (places_NW + count).clamp(max=count - 1)]
    return torch.where((places_NW >= 0)[..., None], x_BTD[0, tokens_NW], earlier)
