"""RWKV-7's WKV through Triton: buffers, launches and the autograd function."""

from typing import Any

import torch
import triton

from forgetmenot_kernels.gated_delta_rule.triton_rule import Places, chunk_places
from forgetmenot_kernels.packing import Packing
from forgetmenot_kernels.wkv7.triton_backward import (
    dstates_kernel,
    inputs_gradient_kernel,
    products_gradient_kernel,
)
from forgetmenot_kernels.wkv7.triton_forward import output_kernel, prepare_kernel, states_kernel

CHUNK = 64
TILE = 64  # 16-bit tiles of several products have to be as wide for Hopper
FLOAT_TILE = 32  # of the kernels that work in float32
LEAF, LEAF_OF_BF16 = 4, 6  # log2 of the tokens that meet at once where decays are mild


def wkv7(
    inputs: tuple[torch.Tensor, ...], state_BHVK: torch.Tensor, packing: Packing | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As the public `wkv7`, for arguments it has checked; `inputs` are r, w, k, v, a, b.

    Raises TypeError for float64 and ValueError for K or V above 256.
    """
    if torch.float64 in (x.dtype for x in inputs):
        raise TypeError("r ... b: found float64; allowed with triton: float32, float16, bfloat16")
    for name, width in (("r", inputs[0].shape[-1]), ("v", inputs[3].shape[-1])):
        if width > 256:
            raise ValueError(f"{name}: found width {width}; allowed with triton: at most 256")
    places = chunk_places(packing) if packing else None
    return _WKV7.apply(*inputs, state_BHVK.float(), places)


class _WKV7(torch.autograd.Function):
    """Saves the inputs; all else is computed again."""

    @staticmethod
    def forward(
        ctx: Any,
        r: torch.Tensor,
        w: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        initial: torch.Tensor,
        places: Places | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = [x.contiguous() for x in (r, w, k, v, a, b)]
        v, initial, o = inputs[3], initial.contiguous(), torch.empty_like(inputs[3])
        ctx.save_for_backward(*inputs, initial)
        ctx.launch = launch = _Launch(inputs, len(initial), places)
        with torch.cuda.device_of(v):
            parts = launch.prepare(inputs)
            states, read, final = launch.states(v, parts, initial)
            output_kernel[(*launch.grid, launch.value_tiles)](
                v, parts["query"], parts["rb"], parts["rk"], states, read, o, launch.places,
                launch.time, **launch.chunk_tiles,
            )  # fmt: skip
        return o, final

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, do: torch.Tensor, dfinal: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        *inputs, initial = ctx.saved_tensors
        r, w, k, v, a, b = inputs
        launch: _Launch = ctx.launch
        do, dfinal, dinitial = do.contiguous(), dfinal.contiguous(), torch.empty_like(initial)
        dr, dw, dk, dv, da, db = (torch.empty_like(x) for x in inputs)
        with torch.cuda.device_of(v):
            parts = launch.prepare(inputs)
            states, read, _ = launch.states(v, parts, initial)
            dstates, dread, y = (torch.empty_like(x) for x in (states, read, read))
            dstates_kernel[launch.grid_over_time](
                do, parts["query"], parts["W"], parts["b_out"], parts["rb"], parts["decay"],
                dfinal, dstates, dread, dinitial, *launch.borders, launch.time,
                **launch.over_time,
            )  # fmt: skip
            products = [torch.empty_like(parts["rb"]) for _ in range(4)]
            products_gradient_kernel[launch.grid](
                v, do, read, dread, parts["k_out"], parts["rk"], parts["X"], parts["ak"], dstates,
                y, *products, dv, launch.places, launch.time, **launch.chunk_tiles,
            )  # fmt: skip
            grid = (*launch.grid, triton.cdiv(r.shape[-1], FLOAT_TILE))
            inputs_gradient_kernel[grid](
                r, w, k, v, a, b, do, read, y, states, dstates, *products, dr, dw, dk, da, db,
                launch.places, launch.time, **launch.float_tiles,
            )  # fmt: skip
        return dr, dw, dk, dv, da, db, dinitial, None


class _Launch:
    """Extents of one call, and what the launches of both passes share."""

    def __init__(self, inputs: list[torch.Tensor], sequences: int, places: Places | None) -> None:
        batch, self.time, self.heads, self.key_dim = inputs[0].shape
        self.value_dim, self.device = inputs[3].shape[-1], inputs[0].device
        self.lead = (batch, self.time, self.heads)
        self.chunks = batch * triton.cdiv(self.time, CHUNK) if places is None else len(places[1])
        self.places = None if places is None else places[1]
        self.borders = (None, None) if places is None else (places[0], places[2])
        self.value_tiles = triton.cdiv(self.value_dim, TILE)
        self.grid = (self.chunks * self.heads,)
        self.grid_over_time = (sequences * self.heads, self.value_tiles)
        # what is kept between kernels: float16 has not the range of sums
        dtypes = {x.dtype for x in inputs if x is not inputs[1]}
        half = dtypes == {torch.bfloat16}
        self.dtype = torch.bfloat16 if half else torch.float32
        shape: dict[str, Any] = {
            "H": self.heads, "K": self.key_dim, "V": self.value_dim, "C": CHUNK,
            "VARLEN": places is not None, "PRECISION": "tf32" if half else "tf32x3",
        }  # fmt: skip
        self.chunk_tiles = {**shape, "BK": TILE, "BV": TILE, "num_warps": 8, "num_stages": 1}
        self.float_tiles = {
            **self.chunk_tiles, "BK": FLOAT_TILE, "BV": FLOAT_TILE,
            "LEAF": LEAF_OF_BF16 if half else LEAF,
        }  # fmt: skip
        # all of K a tile
        width = max(TILE, triton.next_power_of_2(self.key_dim))
        stages = max(1, min(3, 256 // width - 1)) if half else 1
        self.over_time = {
            **shape, "BK": width, "BV": TILE, "num_warps": 4 if width == TILE else 8,
            "num_stages": stages,
        }  # fmt: skip

    def new(self, width: int) -> torch.Tensor:
        """An unfilled [B, T, H, width]."""
        return torch.empty(*self.lead, width, dtype=self.dtype, device=self.device)

    def prepare(self, inputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Launch of `prepare_kernel`: its results by their names there."""
        parts = {name: self.new(self.key_dim) for name in ("query", "W", "b_out", "k_out")}
        parts |= {name: self.new(CHUNK) for name in ("rb", "rk", "X", "ak")}
        parts["U"] = self.new(self.value_dim)
        shape = (self.chunks, self.heads, self.key_dim)
        parts["decay"] = torch.empty(shape, dtype=torch.float32, device=self.device)
        prepare_kernel[self.grid](
            *inputs, **{f"{name}_ptr": part for name, part in parts.items()},
            places_ptr=self.places, T=self.time, **self.float_tiles,
        )  # fmt: skip
        return parts

    def states(
        self, v: torch.Tensor, parts: dict[str, torch.Tensor], initial: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Launch of `states_kernel`: the states before chunks, reads, the last states."""
        shape = (self.chunks, self.heads, self.key_dim, self.value_dim)
        states = torch.empty(shape, dtype=self.dtype, device=self.device)
        read, final = self.new(self.value_dim), torch.empty_like(initial)
        states_kernel[self.grid_over_time](
            v, parts["W"], parts["U"], parts["b_out"], parts["k_out"], parts["decay"], initial,
            states, read, final, *self.borders, self.time, **self.over_time,
        )  # fmt: skip
        return states, read, final
