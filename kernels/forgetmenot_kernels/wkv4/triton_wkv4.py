"""RWKV-4's WKV through Triton: buffers, launches and the autograd function."""

from typing import Any

import torch
import triton

from forgetmenot_kernels.gated_delta_rule.triton_rule import Places, chunk_places
from forgetmenot_kernels.packing import Packing
from forgetmenot_kernels.wkv4.reference import WKV4State
from forgetmenot_kernels.wkv4.triton_kernels import (
    carry_kernel,
    gradient_kernel,
    output_kernel,
    replay_kernel,
    step_kernel,
    summary_kernel,
)

CHUNK = 64
CHANNELS = 64  # of a program: few, as only many programs hide the wait for each token


def wkv4(
    k_BTD: torch.Tensor,
    v_BTD: torch.Tensor,
    decay_D: torch.Tensor,
    bonus_D: torch.Tensor,
    initial_state: WKV4State,
    packing: Packing | None,
) -> tuple[torch.Tensor, WKV4State]:
    """As the public `wkv4`, for arguments it has checked.

    Raises TypeError for float64.
    """
    if torch.float64 in (k_BTD.dtype, v_BTD.dtype):
        raise TypeError("k, v: found float64; allowed with triton: float32, float16, bfloat16")
    # The exponent only stabilises: its gradient is that of a and b through exp(p - stop(p)) = 1.
    p = initial_state.p.float()
    unit = (p - p.detach()).exp() if p.requires_grad else 1.0
    start_3BD = torch.stack((initial_state.a * unit, initial_state.b * unit, p.detach()))
    places = chunk_places(packing) if packing else None
    wkv, sums, exponent = _WKV4.apply(k_BTD, v_BTD, decay_D, bonus_D, start_3BD.float(), places)
    return wkv, WKV4State(sums[0], sums[1], exponent)


class _WKV4(torch.autograd.Function):
    """Saves the inputs and the state at each chunk's start."""

    @staticmethod
    def forward(
        ctx: Any,
        k: torch.Tensor,
        v: torch.Tensor,
        decay: torch.Tensor,
        bonus: torch.Tensor,
        start: torch.Tensor,
        places: Places | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        k, v, decay, bonus = (x.contiguous() for x in (k, v, decay, bonus))
        sizes = _Sizes(k, start.shape[1], places)
        states, wkv = sizes.new_states(), torch.empty_like(v)
        with torch.cuda.device_of(k):
            summary_kernel[sizes.grid](k, v, decay, states, **sizes.options)
            final = sizes.carry(states, decay, start, reverse=False)
            output_kernel[sizes.grid](k, v, decay, bonus, states, wkv, **sizes.options)
        sums, exponent = final.split((2, 1))
        ctx.save_for_backward(k, v, decay, bonus, states, start, exponent)
        ctx.sizes = sizes
        exponent = exponent[0].clone()
        ctx.mark_non_differentiable(exponent)
        return wkv, sums.clone(), exponent

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, dwkv: torch.Tensor, dsums: torch.Tensor, _: Any
    ) -> tuple[torch.Tensor | None, ...]:
        k, v, decay, bonus, states, start, exponent = ctx.saved_tensors
        sizes, dwkv = ctx.sizes, dwkv.contiguous()
        replay = torch.empty(3, *k.shape, dtype=torch.float32, device=k.device)
        dstates, dk, dv = sizes.new_states(), torch.empty_like(k), torch.empty_like(v)
        # of each chunk, summed in a fixed order, so that runs are equal to the bit
        ddecay, dbonus = torch.empty_like(states[0]), torch.empty_like(states[0])
        options = {**sizes.options, "distance_of_tokens": k.numel()}
        with torch.cuda.device_of(k):
            replay_kernel[sizes.grid](
                k, v, dwkv, decay, bonus, states, replay, dstates, **options
            )  # fmt: skip
            dend = torch.cat((dsums, -exponent))
            dstart = sizes.carry(dstates, decay, dend, reverse=True)
            gradient_kernel[sizes.grid](
                k, v, dwkv, decay, bonus, replay, dstates, dk, dv, ddecay, dbonus, **options
            )  # fmt: skip
        dinitial = dstart[:2] * (dstart[2] + start[2]).exp()
        return (
            dk,
            dv,
            ddecay.sum(0).to(decay.dtype),
            dbonus.sum(0).to(bonus.dtype),
            torch.cat((dinitial, torch.zeros_like(start[:1]))),
            None,
        )


class _Sizes:
    """Extents of one call, and what its launches share."""

    def __init__(self, k: torch.Tensor, sequences: int, places: Places | None) -> None:
        batch, self.time, self.width = k.shape
        self.sequences, self.device = sequences, k.device
        self.chunks = batch * triton.cdiv(self.time, CHUNK) if places is None else len(places[1])
        tiles = triton.cdiv(self.width, CHANNELS)
        self.grid, self.grid_over_time = (self.chunks, tiles), (sequences, tiles)
        self.borders = (places[0], places[2]) if places else (None, None)
        self.shape: dict[str, Any] = {
            "distance": self.chunks * self.width, "T": self.time, "D": self.width, "C": CHUNK,
            "BD": CHANNELS, "VARLEN": places is not None, "num_warps": 1,
        }  # fmt: skip
        self.options = {**self.shape, "places_ptr": places[1] if places else None}

    def new_states(self) -> torch.Tensor:
        """Three unfilled vectors a chunk."""
        return torch.empty(3, self.chunks, self.width, dtype=torch.float32, device=self.device)

    def carry(
        self, states: torch.Tensor, decay: torch.Tensor, start: torch.Tensor, reverse: bool
    ) -> torch.Tensor:
        """From sums of each chunk to those before it, in place, and the sums after all."""
        start = start.contiguous()
        end = torch.empty_like(start)
        carry_kernel[self.grid_over_time](
            states, decay, start, end, *self.borders, REVERSE=reverse,
            distance_of_states=start[0].numel(), **self.shape,
        )  # fmt: skip
        return end


def step(
    k_BD: torch.Tensor,
    v_BD: torch.Tensor,
    decay_D: torch.Tensor,
    bonus_D: torch.Tensor,
    state: WKV4State,
) -> tuple[torch.Tensor, WKV4State]:
    """As the public `wkv4_step`, for arguments it has checked; without gradients.

    Raises TypeError for a state other than float32, ValueError when a gradient is asked for.
    """
    if state.p.dtype != torch.float32:
        raise TypeError(f"state: found dtype {state.p.dtype}; allowed with triton: float32")
    inputs = (k_BD, v_BD, decay_D, bonus_D, *state)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        raise ValueError("state: found inputs that require a gradient; allowed with triton: none")
    k, v, decay, bonus, a, b, p = (x.contiguous() for x in inputs)
    batch, width = k.shape
    wkv = torch.empty_like(v)
    with torch.cuda.device_of(k):
        step_kernel[(batch, triton.cdiv(width, CHANNELS))](
            k, v, decay, bonus, a, b, p, wkv, width, CHANNELS, num_warps=1
        )
    return wkv, WKV4State(a, b, p)
