# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The linear map with per-sequence low-rank changes through Triton, forward and backward.

One kernel serves both: the gradient of x is dy through W'^T = W^T - (scale / r) right left^T, the
same map with the factors exchanged. The products with few columns that the other gradients need
(x right and dy left) come out of it on the way; those gradients themselves are plain products.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

MOST_RANK = 128
GROUP = 8  # tiles of tokens that share a tile of weights while it is in the cache


class Tiles(NamedTuple):
    """Tile of tokens x tile of outputs, step over inputs, warps and pipeline stages."""

    BT: int
    BO: int
    BI: int
    num_warps: int
    num_stages: int


SHORT = Tiles(64, 128, 64, 4, 3)  # at most 64 tokens a sequence
LONG = Tiles(128, 128, 64, 8, 3)
FLOAT32 = Tiles(64, 64, 32, 4, 2)


@triton.jit(do_not_specialize=["T", "tiles_T", "tiles"])
def _linear_kernel(
    x_ptr, weight_ptr, left_ptr, right_ptr, scale_ptr, bias_ptr, y_ptr, inner_ptr,
    T, inputs, outputs, step_o, step_i, tiles_T, tiles,
    R: tl.constexpr, BR: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
    GROUP: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of one sequence's tokens and outputs; those of the first outputs also store x right.

    Every tile of outputs forms x right anew beside x W^T, so that x is read once.
    """
    tiles_O = tl.cdiv(outputs, BO)
    pid = tl.program_id(0)
    group = pid // (GROUP * tiles_O)
    size = tl.minimum(tiles - group * GROUP, GROUP)
    tile = group * GROUP + pid % (GROUP * tiles_O) % size
    tile_o = pid % (GROUP * tiles_O) // size
    batch = (tile // tiles_T).to(tl.int64)
    t = tile % tiles_T * BT + tl.arange(0, BT)
    o = tile_o * BO + tl.arange(0, BO)
    r = tl.arange(0, BR)
    n = tl.arange(0, BI)
    x_ptr += batch * T * inputs + t[:, None].to(tl.int64) * inputs
    weight_ptr += o[None, :].to(tl.int64) * step_o
    right_ptr += batch * inputs * R + r[None, :]
    acc = tl.zeros([BT, BO], tl.float32)
    inner = tl.zeros([BT, BR], tl.float32)
    for start in range(0, inputs, BI):
        i = start + n
        x = tl.load(x_ptr + i[None, :], mask=(t < T)[:, None] & (i < inputs)[None, :], other=0.0)
        weight = tl.load(
            weight_ptr + i[:, None].to(tl.int64) * step_i,
            mask=(i < inputs)[:, None] & (o < outputs)[None, :], other=0.0,
        )  # fmt: skip
        right = tl.load(
            right_ptr + i[:, None] * R, mask=(i < inputs)[:, None] & (r < R)[None, :], other=0.0
        )
        acc = tl.dot(x, weight, acc, input_precision=PRECISION)
        inner = tl.dot(x, right, inner, input_precision=PRECISION)
    if tile_o == 0:
        at = (batch * T + t)[:, None] * R + r[None, :]
        inside = (t < T)[:, None] & (r < R)[None, :]
        tl.store(inner_ptr + at, inner.to(inner_ptr.dtype.element_ty), mask=inside)
    left = tl.load(
        left_ptr + (batch * outputs + o)[None, :] * R + r[:, None],
        mask=(r < R)[:, None] & (o < outputs)[None, :], other=0.0,
    )  # fmt: skip
    inner = inner * (-tl.load(scale_ptr).to(tl.float32) / R)
    acc = tl.dot(inner.to(left.dtype), left, acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + o, mask=o < outputs, other=0.0).to(tl.float32)[None, :]
    y_at = (batch * T + t)[:, None] * outputs + o[None, :]
    inside = (t < T)[:, None] & (o < outputs)[None, :]
    tl.store(y_ptr + y_at, acc.to(y_ptr.dtype.element_ty), mask=inside)


def _linear(
    x_BTI: torch.Tensor,
    weight_OI: torch.Tensor,
    left_BOR: torch.Tensor,
    right_BIR: torch.Tensor,
    scale: torch.Tensor,
    bias_O: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Y [B, T, O] and x right [B, T, R]; the weight may lie in memory in either order."""
    batch, time, inputs = x_BTI.shape
    outputs, rank = left_BOR.shape[1:]
    single = x_BTI.dtype == torch.float32
    tiles = FLOAT32 if single else SHORT if time <= 64 else LONG
    # half precision: no dimension of a product below 64, which Triton 3.6 miscompiles for Hopper
    block_r = max(16 if single else 64, triton.next_power_of_2(rank))
    y = x_BTI.new_empty(batch, time, outputs)
    inner = x_BTI.new_empty(batch, time, rank)
    tiles_t = triton.cdiv(time, tiles.BT)
    grid = (batch * tiles_t * triton.cdiv(outputs, tiles.BO),)
    with torch.cuda.device_of(x_BTI):
        _linear_kernel[grid](
            x_BTI, weight_OI, left_BOR, right_BIR, scale, bias_O, y, inner, time, inputs, outputs,
            *weight_OI.stride(), tiles_t, batch * tiles_t, R=rank, BR=block_r, BT=tiles.BT,
            BO=tiles.BO, BI=tiles.BI, GROUP=GROUP, HAS_BIAS=bias_O is not None, PRECISION="ieee",
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return y, inner


def low_rank_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    scale: torch.Tensor | float,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """As the public `low_rank_linear`, for arguments whose shapes it has checked.

    Raises TypeError for float64 and for a weight or bias of another dtype than x, ValueError for
    a rank above 128.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if x.dtype == torch.float64:
        raise TypeError("x: found float64; allowed with triton: float32, float16, bfloat16")
    for name, part in {"weight": weight, "bias": bias}.items():
        if part is not None and part.dtype != x.dtype:
            raise TypeError(f"{name}: found dtype {part.dtype}; allowed with triton: x's {x.dtype}")
    if left.shape[-1] > MOST_RANK:
        raise ValueError(
            f"left: found rank {left.shape[-1]}; allowed with triton: at most {MOST_RANK}"
        )
    if not isinstance(scale, torch.Tensor):
        scale = torch.full((), scale, dtype=torch.float32, device=x.device)
    return _LowRankLinear.apply(x, weight, left.to(x.dtype), right.to(x.dtype), scale, bias)


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        left: torch.Tensor,
        right: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        x, weight, left, right = (part.contiguous() for part in (x, weight, left, right))
        y, inner = _linear(x, weight, left, right, scale, bias)
        ctx.save_for_backward(x, weight, left, right, scale, inner)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, left, right, scale, inner = ctx.saved_tensors
        _, for_weight, for_left, for_right, for_scale, for_bias = ctx.needs_input_grad
        dy, rank = dy.contiguous(), left.shape[-1]
        dx, inner_dy = _linear(dy, weight.mT, right, left, scale, None)
        factor = (-scale / rank).to(x.dtype)
        return (
            dx,
            dy.flatten(0, 1).mT @ x.flatten(0, 1) if for_weight else None,
            dy.mT @ inner * factor if for_left else None,
            x.mT @ inner_dy * factor if for_right else None,
            (-(inner.float() * inner_dy.float()).sum() / rank).to(scale.dtype)
            if for_scale
            else None,
            dy.flatten(0, 1).sum(0) if for_bias else None,
        )
