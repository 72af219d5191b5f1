"""Retention through Triton: buffers, launches and the autograd function."""

from typing import Any

import torch
import triton

from forgetmenot_kernels.gated_delta_rule.triton_rule import Places, chunk_places
from forgetmenot_kernels.packing import Packing
from forgetmenot_kernels.retention.triton_kernels import (
    gradient_kernel,
    output_kernel,
    states_kernel,
    step_kernel,
)

CHUNK = TILE = 64
STEP_COLUMNS = 32


def retention(
    q_BTHK: torch.Tensor,
    k_BTHK: torch.Tensor,
    v_BTHV: torch.Tensor,
    log_decay_H: torch.Tensor,
    scale: float,
    state_BHKV: torch.Tensor,
    packing: Packing | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As the public `retention`, for arguments it has checked.

    Raises TypeError for float64 and ValueError for K or V above 256.
    """
    dtype = torch.promote_types(torch.promote_types(q_BTHK.dtype, k_BTHK.dtype), v_BTHV.dtype)
    if dtype == torch.float64:
        raise TypeError("q, k, v: found float64; allowed with triton: float32, float16, bfloat16")
    for name, width in (("q", q_BTHK.shape[-1]), ("v", v_BTHV.shape[-1])):
        if width > 256:
            raise ValueError(f"{name}: found width {width}; allowed with triton: at most 256")
    places = chunk_places(packing) if packing else None
    inputs = (x.to(dtype) for x in (q_BTHK, k_BTHK, v_BTHV))
    o, final = _Retention.apply(*inputs, log_decay_H, state_BHKV.float(), scale, places)
    return o.to(v_BTHV.dtype), final


class _Retention(torch.autograd.Function):
    """Saves the inputs; the states are computed again."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        log_decay: torch.Tensor,
        initial: torch.Tensor,
        scale: float,
        places: Places | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v, log_decay, initial = (x.contiguous() for x in (q, k, v, log_decay, initial))
        launch, o = _Launch(q, v, places), torch.empty_like(v)
        with torch.cuda.device_of(q):
            states, final = launch.states(k, v, log_decay, initial, 1.0, reverse=False)
            output_kernel[launch.chunks * launch.heads, launch.tiles[1]](
                q, k, v, log_decay, states, o, launch.places, scale, launch.time, **launch.options
            )
        ctx.save_for_backward(q, k, v, log_decay, initial)
        ctx.launch, ctx.scale = launch, scale
        return o, final

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, do: torch.Tensor, dfinal: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        q, k, v, log_decay, initial = ctx.saved_tensors
        launch, scale, do = ctx.launch, ctx.scale, do.contiguous()
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        # of each chunk, summed in a fixed order, so that runs are equal to the bit
        dlog_decay = torch.empty(launch.chunks, launch.heads, dtype=torch.float32, device=q.device)
        with torch.cuda.device_of(q):
            states, _ = launch.states(k, v, log_decay, initial, 1.0, reverse=False)
            dfinal = dfinal.contiguous()
            dstates, dinitial = launch.states(q, do, log_decay, dfinal, scale, reverse=True)
            gradient_kernel[(launch.chunks * launch.heads,)](
                q, k, v, log_decay, states, dstates, do, dq, dk, dv, dlog_decay, launch.places,
                scale, launch.time, **launch.options,
            )  # fmt: skip
        return dq, dk, dv, dlog_decay.sum(0).to(log_decay.dtype), dinitial, None, None


class _Launch:
    """Extents of one call, and what its launches share."""

    def __init__(self, q: torch.Tensor, v: torch.Tensor, places: Places | None) -> None:
        batch, self.time, self.heads, key_dim = q.shape
        value_dim = v.shape[-1]
        self.chunks = batch * triton.cdiv(self.time, CHUNK) if places is None else len(places[1])
        self.sequences = batch if places is None else len(places[2])
        self.places = None if places is None else places[1]
        self.borders = (None, None) if places is None else (places[0], places[2])
        self.tiles = (triton.cdiv(key_dim, TILE), triton.cdiv(value_dim, TILE))
        # sums of many tokens may leave float16's range
        half = q.dtype == torch.bfloat16
        self.state_dtype = torch.bfloat16 if half else torch.float32
        self.state_shape = (self.chunks, self.heads, key_dim, value_dim)
        self.options: dict[str, Any] = {
            "H": self.heads, "K": key_dim, "V": value_dim, "C": CHUNK, "BK": TILE, "BV": TILE,
            "VARLEN": places is not None, "PRECISION": "tf32x3", "num_warps": 4 if half else 8,
            "num_stages": 3 if half else 1,
        }  # fmt: skip

    def states(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        log_decay: torch.Tensor,
        first: torch.Tensor,
        scale: float,
        reverse: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The state that each chunk meets, and the one after all."""
        states = torch.empty(self.state_shape, dtype=self.state_dtype, device=x.device)
        last = torch.empty_like(first)
        states_kernel[(self.sequences * self.heads, *self.tiles)](
            x, y, log_decay, first, states, last, *self.borders, scale, self.time,
            REVERSE=reverse, **self.options,
        )  # fmt: skip
        return states, last


def step(
    q_BHK: torch.Tensor,
    k_BHK: torch.Tensor,
    v_BHV: torch.Tensor,
    log_decay_H: torch.Tensor,
    scale: float,
    state_BHKV: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As the public `retention_step`, for arguments it has checked; without gradients.

    Raises TypeError for a state other than float32, ValueError when a gradient is asked for.
    """
    inputs = (q_BHK, k_BHK, v_BHV, log_decay_H, state_BHKV)
    if state_BHKV.dtype != torch.float32:
        raise TypeError(f"state: found dtype {state_BHKV.dtype}; allowed with triton: float32")
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        raise ValueError("state: found inputs that require a gradient; allowed with triton: none")
    q, k, v, log_decay, state = (x.contiguous() for x in inputs)
    batch, heads, key_dim, value_dim = state.shape
    o = torch.empty_like(v)
    with torch.cuda.device_of(q):
        step_kernel[batch * heads, triton.cdiv(value_dim, STEP_COLUMNS)](
            q, k, v, log_decay, state, o, scale, heads, key_dim, value_dim,
            triton.next_power_of_2(key_dim), STEP_COLUMNS,
        )  # fmt: skip
    return o, state
