# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Triton kernels that bring queries and keys to unit length, and their gradient."""

import torch
import triton
import triton.language as tl

from forgetmenot_kernels.launching import KernelLaunch

TILE = 4096  # numbers a program handles of q and of k


@triton.jit
def _normalise(x_ptr, y_ptr, inverse_ptr, rows, x_row, H: tl.constexpr, K, R: tl.constexpr, BK):
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    d = tl.arange(0, BK)[None, :]
    mask = (row < rows)[:, None] & (d < K)
    place = (row // H) * x_row + (row % H) * K
    x = tl.load(x_ptr + place[:, None] + d, mask=mask, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, 1) + 1e-6)
    tl.store(inverse_ptr + row, inverse, mask=row < rows)
    y = (x * inverse[:, None]).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row[:, None] * K + d, y, mask=mask)


@triton.jit
def _normalise_gradient(y_ptr, inverse_ptr, dy_ptr, dx_ptr, rows, K, R: tl.constexpr, BK):
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    d = tl.arange(0, BK)[None, :]
    mask = (row < rows)[:, None] & (d < K)
    place = row[:, None] * K + d
    y = tl.load(y_ptr + place, mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)
    inverse = tl.load(inverse_ptr + row, mask=row < rows, other=0.0)
    dx = inverse[:, None] * (dy - y * tl.sum(y * dy, 1)[:, None])
    tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _unit_length_kernel(
    q_ptr,
    k_ptr,
    q_unit_ptr,
    k_unit_ptr,
    q_inverse_ptr,
    k_inverse_ptr,
    rows,
    q_row,
    k_row,
    H: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    BK: tl.constexpr,
):
    _normalise(q_ptr, q_unit_ptr, q_inverse_ptr, rows, q_row, H, K, R, BK)
    _normalise(k_ptr, k_unit_ptr, k_inverse_ptr, rows, k_row, H, K, R, BK)


@triton.jit(do_not_specialize=["rows"])
def _unit_length_gradient_kernel(
    q_unit_ptr,
    k_unit_ptr,
    q_inverse_ptr,
    k_inverse_ptr,
    dq_unit_ptr,
    dk_unit_ptr,
    dq_ptr,
    dk_ptr,
    rows,
    K: tl.constexpr,
    R: tl.constexpr,
    BK: tl.constexpr,
):
    _normalise_gradient(q_unit_ptr, q_inverse_ptr, dq_unit_ptr, dq_ptr, rows, K, R, BK)
    _normalise_gradient(k_unit_ptr, k_inverse_ptr, dk_unit_ptr, dk_ptr, rows, K, R, BK)


def _tiles(x: torch.Tensor) -> tuple[int, int, int]:
    """Rows of x [B, T, H, K], rows of a program, and width of its tile."""
    width = triton.next_power_of_2(x.shape[-1])
    return x.numel() // x.shape[-1], TILE // width, width


def unit_length(
    q: torch.Tensor, k: torch.Tensor, q_row: int, k_row: int
) -> tuple[KernelLaunch, tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The launch that fills what follows it here: q and k [B, T, H, K] as x / sqrt(|x|^2 + 1e-6),
    and 1 / sqrt(|x|^2 + 1e-6) of both.
    """
    *lead, heads, key_dim = q.shape
    q_unit, k_unit = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(2))
    q_inverse, k_inverse = (torch.empty(*lead, heads, device=q.device) for _ in range(2))
    results = (q_unit, k_unit, q_inverse, k_inverse)
    rows, height, width = _tiles(q)
    sizes = (rows, q_row, k_row, heads, key_dim, height, width)
    grid = (triton.cdiv(rows, height),)
    return KernelLaunch(_unit_length_kernel, grid, (q, k, *results, *sizes), {}), results


def unit_length_gradient(
    units: tuple[torch.Tensor, torch.Tensor],
    inverses: tuple[torch.Tensor, ...],
    gradients: tuple[torch.Tensor, torch.Tensor],
) -> tuple[KernelLaunch, tuple[torch.Tensor, torch.Tensor]]:
    """The launch that fills the gradients of q and k from those of their unit-length forms."""
    dq, dk = (torch.empty_like(x) for x in units)
    rows, height, width = _tiles(dq)
    sizes = (rows, dq.shape[-1], height, width)
    arguments = (*units, *inverses, *gradients, dq, dk, *sizes)
    grid = (triton.cdiv(rows, height),)
    return KernelLaunch(_unit_length_gradient_kernel, grid, arguments, {}), (dq, dk)
