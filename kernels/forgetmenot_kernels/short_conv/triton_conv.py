# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The short causal convolution through Triton: forward, backward and the step in place.

All sequences lie one after another on the token axis: x is [tokens, D]. Nothing but the inputs is
saved; the backward pass computes the sums anew, and their gradients go through memory once, since a
token needs those of the W - 1 tokens after it.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from forgetmenot_kernels.packing import Packing

BT, BD = 32, 128  # tokens and channels of a program
STEP_WARPS = 4  # of a program of BD channels: each is read and overwritten by one thread alone


@triton.jit
def _sum_at(
    x_ptr, weight_ptr, state_ptr, token, n, place, mask, d, D, W: tl.constexpr
):  # fmt: skip
    """sum_w weight[d, w] * x at place - (W - 1) + w; the state holds the inputs before place 0."""
    total = tl.zeros_like(mask).to(tl.float32)
    for back in tl.static_range(W):
        x = _input_at(x_ptr, state_ptr, token, n, place, back, mask, d, D, W)
        weight = tl.load(weight_ptr + d * W + (W - 1 - back), mask=d < D, other=0.0)
        total += x * weight.to(tl.float32)[None, :]
    return total


@triton.jit
def _input_at(
    x_ptr, state_ptr, token, n, place, back, mask, d, D, W: tl.constexpr
):  # fmt: skip
    inside = mask & (place >= back)[:, None]
    x = tl.load(x_ptr + (token - back)[:, None] * D + d[None, :], mask=inside, other=0.0)
    x = x.to(tl.float32)
    before = mask & (place < back)[:, None]
    row = n * (W - 1) + (W - 1) + place - back
    state = tl.load(state_ptr + row[:, None] * D + d[None, :], mask=before, other=0.0)
    return x + state.to(tl.float32)


@triton.jit
def _slope_at(
    x_ptr, weight_ptr, state_ptr, dy_ptr, token, n, place, mask, d, D, W: tl.constexpr
):  # fmt: skip
    """Gradient of the sum at these tokens, through SiLU."""
    total = _sum_at(x_ptr, weight_ptr, state_ptr, token, n, place, mask, d, D, W)
    dy = tl.load(dy_ptr + token[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-total))
    return dy * sigmoid * (1.0 + total * (1.0 - sigmoid))


@triton.jit
def _places(row_ptr, place_ptr, cu_ptr, tokens, T, SIZE: tl.constexpr, VARLEN: tl.constexpr):
    """Of a tile of tokens: which they are, their sequence, place in it, and its length."""
    token = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    if VARLEN:
        n = tl.load(row_ptr + token, mask=token < tokens, other=0)
        place = tl.load(place_ptr + token, mask=token < tokens, other=0)
        length = tl.load(cu_ptr + n + 1) - tl.load(cu_ptr + n)
    else:
        n, place = token // T, token % T
        length = tl.zeros_like(token) + T
    return token, n, place, length


@triton.jit(do_not_specialize=["tokens", "T"])
def _forward_kernel(
    x_ptr, weight_ptr, state_ptr, y_ptr, row_ptr, place_ptr, cu_ptr, tokens, T, D,
    W: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    token, n, place, _ = _places(row_ptr, place_ptr, cu_ptr, tokens, T, SIZE, VARLEN)
    d = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    mask = (token < tokens)[:, None] & (d < D)[None, :]
    total = _sum_at(x_ptr, weight_ptr, state_ptr, token, n, place, mask, d, D, W)
    y = total / (1.0 + tl.exp(-total))
    tl.store(y_ptr + token[:, None] * D + d[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens", "T"])
def _slope_kernel(
    x_ptr, weight_ptr, state_ptr, dy_ptr, slope_ptr, row_ptr, place_ptr, cu_ptr, tokens, T, D,
    W: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """Gradient of the sums before SiLU."""
    token, n, place, _ = _places(row_ptr, place_ptr, cu_ptr, tokens, T, SIZE, VARLEN)
    d = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    mask = (token < tokens)[:, None] & (d < D)[None, :]
    slope = _slope_at(x_ptr, weight_ptr, state_ptr, dy_ptr, token, n, place, mask, d, D, W)
    at = token[:, None] * D + d[None, :]
    tl.store(slope_ptr + at, slope.to(slope_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens", "T"])
def _backward_kernel(
    x_ptr, weight_ptr, state_ptr, slope_ptr, dx_ptr, dweight_ptr, row_ptr, place_ptr, cu_ptr,
    tokens, T, D,
    W: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """dx, and this tile's part of the weights' gradient [tiles, W, D]."""
    token, n, place, length = _places(row_ptr, place_ptr, cu_ptr, tokens, T, SIZE, VARLEN)
    d = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    mask = (token < tokens)[:, None] & (d < D)[None, :]
    at = token[:, None] * D + d[None, :]
    slope = tl.load(slope_ptr + at, mask=mask, other=0.0).to(tl.float32)
    dx = tl.zeros([SIZE, WIDTH], tl.float32)
    for ahead in tl.static_range(W):
        there = mask & (place + ahead < length)[:, None]
        later = tl.load(slope_ptr + at + ahead * D, mask=there, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + d * W + (W - 1 - ahead), mask=d < D, other=0.0)
        dx += later * weight.to(tl.float32)[None, :]
        x = _input_at(x_ptr, state_ptr, token, n, place, ahead, mask, d, D, W)
        tap = tl.program_id(0).to(tl.int64) * W + (W - 1 - ahead)
        tl.store(dweight_ptr + tap * D + d, tl.sum(slope * x, 0), mask=d < D)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T"])
def _state_backward_kernel(
    x_ptr, weight_ptr, state_ptr, dy_ptr, dstate_ptr, cu_ptr, T, D,
    W: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """Gradient of one sequence's state: what the inputs at places -(W - 1) .. -1 reached."""
    sequence = tl.program_id(0).to(tl.int64)
    if VARLEN:
        first = tl.load(cu_ptr + sequence)
        length = tl.load(cu_ptr + sequence + 1) - first
    else:
        first = sequence * T
        length = first * 0 + T
    slot = tl.arange(0, SIZE)
    n = tl.zeros([SIZE], tl.int64) + sequence
    d = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = (slot < W - 1)[:, None] & (d < D)[None, :]
    dstate = tl.zeros([SIZE, WIDTH], tl.float32)
    for ahead in tl.static_range(W):
        place = slot - (W - 1) + ahead
        there = inside & ((place >= 0) & (place < length))[:, None]
        slope = _slope_at(
            x_ptr, weight_ptr, state_ptr, dy_ptr, first + place, n, place, there, d, D, W
        )
        weight = tl.load(weight_ptr + d * W + (W - 1 - ahead), mask=d < D, other=0.0)
        dstate += slope * weight.to(tl.float32)[None, :]
    out = dstate_ptr + (sequence * (W - 1) + slot)[:, None] * D + d[None, :]
    tl.store(out, dstate.to(dstate_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _step_kernel(
    x_ptr, weight_ptr, state_ptr, y_ptr, D, W: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """One sequence's token: y, and the state moved on by one input."""
    sequence = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    mask = d < D
    x = tl.load(x_ptr + sequence * D + d, mask=mask, other=0.0)
    weight = tl.load(weight_ptr + d * W + (W - 1), mask=mask, other=0.0)
    total = x.to(tl.float32) * weight.to(tl.float32)
    state_ptr += sequence * (W - 1) * D
    for w in tl.static_range(W - 1):
        earlier = tl.load(state_ptr + w * D + d, mask=mask, other=0.0)
        weight = tl.load(weight_ptr + d * W + w, mask=mask, other=0.0)
        total += earlier.to(tl.float32) * weight.to(tl.float32)
        if w > 0:
            tl.store(state_ptr + (w - 1) * D + d, earlier, mask=mask)
    if W > 1:
        last = x.to(state_ptr.dtype.element_ty)
        tl.store(state_ptr + (W - 2) * D + d, last, mask=mask)
    y = total / (1.0 + tl.exp(-total))
    tl.store(y_ptr + sequence * D + d, y.to(y_ptr.dtype.element_ty), mask=mask)


def short_conv_step(
    x_BD: torch.Tensor, weight_DW: torch.Tensor, state_BWD: torch.Tensor
) -> torch.Tensor:
    """As the public `short_conv_step`, of arguments that it has checked.

    Raises TypeError for float64.
    """
    _check_dtype(x_BD, weight_DW, state_BWD)
    x, weight = x_BD.contiguous(), weight_DW.contiguous()
    (batch, width), taps = x.shape, weight.shape[1]
    y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    with torch.cuda.device_of(x):
        _step_kernel[(batch, triton.cdiv(width, BD))](
            x, weight, state_BWD, y, width, taps, BD, num_warps=STEP_WARPS
        )
    return y


def _check_dtype(*tensors: torch.Tensor) -> None:
    if any(x.dtype == torch.float64 for x in tensors):
        raise TypeError("x: found float64; allowed with triton: float32, float16, bfloat16")


def short_conv(
    x_BTD: torch.Tensor,
    weight_DW: torch.Tensor,
    initial_state_BWD: torch.Tensor,
    packing: Packing | None,
) -> torch.Tensor:
    """The outputs alone, of arguments that the public `short_conv` has checked.

    Raises TypeError for float64.
    """
    _check_dtype(x_BTD, weight_DW)
    return _ShortConv.apply(x_BTD, weight_DW, initial_state_BWD, packing)


class _ShortConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        state: torch.Tensor,
        packing: Packing | None,
    ) -> torch.Tensor:
        x, weight, state = x.contiguous(), weight.contiguous(), state.contiguous()
        (batch, time, width), taps = x.shape, weight.shape[1]
        y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
        grid = (triton.cdiv(batch * time, BT), triton.cdiv(width, BD))
        documents = (packing.row_T, packing.place_T, packing.cu_seqlens) if packing else (None,) * 3
        with torch.cuda.device_of(x):
            _forward_kernel[grid](
                x, weight, state, y, *documents, batch * time, time, width, taps, BT, BD,
                packing is not None,
            )  # fmt: skip
        ctx.save_for_backward(x, weight, state)
        ctx.documents, ctx.grid = documents, grid
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, state = ctx.saved_tensors
        dy, (batch, time, width), taps = dy.contiguous(), x.shape, weight.shape[1]
        varlen = ctx.documents[0] is not None
        dx, dstate = torch.empty_like(x), None
        # summed in a fixed order, so that runs are equal to the bit
        parts = torch.empty(ctx.grid[0], taps, width, device=x.device)
        with torch.cuda.device_of(x):
            slope = torch.empty_like(dy)
            shape = (*ctx.documents, batch * time, time, width, taps, BT, BD, varlen)
            _slope_kernel[ctx.grid](x, weight, state, dy, slope, *shape)
            _backward_kernel[ctx.grid](x, weight, state, slope, dx, parts, *shape)
            if ctx.needs_input_grad[2]:
                dstate = torch.empty_like(state)
                _state_backward_kernel[(len(state), ctx.grid[1])](
                    x, weight, state, dy, dstate, ctx.documents[2], time, width, taps,
                    triton.next_power_of_2(taps), BD, varlen,
                )  # fmt: skip
        return dx, parts.sum(0).T.to(weight.dtype), dstate, None
