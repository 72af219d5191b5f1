"""What every mixer shares: the contract, its place in the model, and initialisation helpers.

Shape suffixes used in this folder: B batch, L tokens, D hidden width, H heads, N documents.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from forgetmenot_kernels.packing import Packing, make_packing, packing_of_mask

Mixed = tuple[torch.Tensor, Any, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Place:
    """Where a mixer stands: hidden width D, its layer of how many, and how weights start.

    `init_std` is the standard deviation of linear maps; None means 1 / sqrt(fan in).
    `residual_init`: "rescale" draws the map that writes to the residual stream from the
    Kaiming-uniform distribution (a = sqrt 5), divided by sqrt(layers), as the reference's hybrid
    class does; "none" draws it like the others (LTE specification, section 1.4).
    """

    hidden: int
    layer: int = 0
    layers: int = 1
    init_std: float | None = None
    residual_init: Literal["none", "rescale"] = "none"


class Mixer(nn.Module):
    """A map of a token sequence to itself with explicit state.

    `mixer(x_BLD, state=None, *, mask_BL=None, cu_seqlens=None, need_state=True) -> (y_BLD, state,
    aux)`: `state=None` starts a sequence, a state continues it with any number of tokens.

    - `mask_BL` (bool, True = token): left padding; outputs there are zero.
    - `cu_seqlens` (integer [N + 1] or its Packing): x is one row of N documents one after another,
      each of which starts from nothing; the state is that of N sequences.
    - Either is for the start of sequences, without a state, and not beside the other.
    - `need_state=False` spares the work for the state; None is returned for it.
    - `aux` holds what losses and reports read; it belongs to the packed row where there is one.
    - A state is used up by the call that continues it: the step of a single token may write to its
      tensors. Branch with `copy.deepcopy` or `select_rows` before; a stale state is refused.

    Mixers implement `mix`, to which padding has become packing.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    def forward(
        self,
        x_BLD: torch.Tensor,
        state: Any = None,
        *,
        mask_BL: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | Packing | None = None,
        need_state: bool = True,
    ) -> Mixed:
        packing = start_packing(x_BLD, state, mask_BL, cu_seqlens)
        if mask_BL is not None:
            x_BLD = x_BLD[mask_BL][None]
        y, state, aux = self.mix(x_BLD, state, packing, need_state)
        y = y if mask_BL is None else unpacked(y, mask_BL)
        return y, state if need_state else None, aux

    def mix(
        self, x_BLD: torch.Tensor, state: Any, packing: Packing | None, need_state: bool
    ) -> Mixed:
        """As `forward`; with a packing, x is its row [1, T, D] and `state` is None."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Initialise every parameter; nothing is initialised elsewhere."""
        raise NotImplementedError

    def share(self, first: "Mixer") -> None:
        """Take over what this mixer shares with the first of its kind in the model."""

    def state_bytes(self, length: int) -> int:
        """Bytes of the state of one sequence after `length` tokens, float32.

        What grows or holds content: integers that only keep the books are not counted, nor is room
        for tokens to come.
        """
        raise NotImplementedError

    def flops(self, context: int) -> int:
        """Forward operations (2 a multiply-add) for one token that has `context` before it.

        Products of matrices and vectors count; norms, gates and other pointwise work does not.
        """
        return 2 * sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))

    def _linear(self, fan_in: int, fan_out: int) -> nn.Linear:
        return nn.Linear(fan_in, fan_out, bias=False)

    def _reset_linears(self, residual: nn.Linear | None = None) -> None:
        """Draw all linear maps; `residual` is the one that writes to the residual stream."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                normal_linear(module, self.place.init_std)
        if residual is not None and self.place.residual_init == "rescale":
            nn.init.kaiming_uniform_(residual.weight, a=math.sqrt(5))
            with torch.no_grad():
                residual.weight.div_(math.sqrt(self.place.layers))


class Turn:
    """How often the memory that states share was written to, so that a stale state is noticed."""

    def __init__(self) -> None:
        self.count = 0

    def check(self, at: int) -> None:
        """Raise ValueError unless the state made at count `at` is still the latest."""
        if at != self.count:
            raise ValueError(
                "state: found one that was continued already; allowed: the latest one, or a copy "
                "made before (copy.deepcopy, forgetmenot.mixers.base.select_rows)"
            )

    def take(self, at: int) -> int:
        """Check, and return the count of the state that the write is going to make."""
        self.check(at)
        self.count += 1
        return self.count


def select_rows(state: Any, index_B: torch.Tensor) -> Any:
    """A copy of a state whose sequence b is sequence `index_B[b]` (int64) of the given one.

    Works on any nesting of tuples. Tensors have the batch first, or no axis at all.
    """
    if isinstance(state, torch.Tensor):
        return state.index_select(0, index_B) if state.dim() else state.clone()
    if isinstance(state, Turn):
        turn = Turn()
        turn.count = state.count
        return turn
    if isinstance(state, dict):
        return {key: select_rows(value, index_B) for key, value in state.items()}
    if isinstance(state, tuple | list):
        parts = [select_rows(part, index_B) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state


def normal_linear(linear: nn.Linear, std: float | None) -> None:
    """Draw a linear map's weight from N(0, std); without a std, from N(0, 1 / fan in)."""
    nn.init.normal_(linear.weight, std=linear.in_features**-0.5 if std is None else std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def unpacked(x_1TD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """Packed tokens [1, T, D] back where the mask has its tokens [B, L, D]; zeros at padding."""
    x_BLD = x_1TD.new_zeros(*mask_BL.shape, x_1TD.shape[-1])
    return x_BLD.masked_scatter(mask_BL[..., None], x_1TD)


def start_packing(
    x_BL: torch.Tensor,
    state: Any,
    mask_BL: torch.Tensor | None,
    cu_seqlens: torch.Tensor | Packing | None,
) -> Packing | None:
    """The packing that a call asks for, of `x_BL[mask_BL]` where there is a mask.

    Raises ValueError for padding or packing that is unfit or stands where it has no meaning.
    """
    given = [name for name, x in (("mask", mask_BL), ("cu_seqlens", cu_seqlens)) if x is not None]
    if not given:
        return None
    if state is not None:
        raise ValueError(f"{given[0]}: found beside a state; allowed: only at a sequence's start")
    if mask_BL is not None:
        if cu_seqlens is not None:
            raise ValueError("cu_seqlens: found beside a mask; allowed: one of the two")
        if mask_BL.shape != x_BL.shape[:2]:
            found, allowed = tuple(mask_BL.shape), tuple(x_BL.shape[:2])
            raise ValueError(f"mask: found shape {found}; allowed: {allowed} [B, L]")
        return packing_of_mask(mask_BL)
    if len(x_BL) != 1:
        raise ValueError(f"cu_seqlens: found beside {len(x_BL)} rows; allowed: one packed row")
    if isinstance(cu_seqlens, Packing):
        return cu_seqlens
    assert cu_seqlens is not None
    return make_packing(cu_seqlens, x_BL.shape[1])


def positions(
    x_BLD: torch.Tensor, length_B: torch.Tensor | None, packing: Packing | None
) -> torch.Tensor:
    """Positions [B, L] (int64) of a segment's tokens; `length_B` were seen before them."""
    if packing is not None:
        return packing.place_T[None]
    batch, time, _ = x_BLD.shape
    steps = torch.arange(time, device=x_BLD.device).expand(batch, time)
    return steps if length_B is None else steps + length_B[:, None]
