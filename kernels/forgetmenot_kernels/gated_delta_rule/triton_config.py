"""Tile sizes of the Triton kernels: one fixed choice a kernel, so that nothing is searched for."""

import functools
from typing import NamedTuple

import torch
import triton

CHUNK = 64
# With several products in a kernel, Triton 3.6 and 3.7 miscompile tiles 16 or 32 wide for Hopper
# (Triton's issues 10486 and 11366): wrong numbers or illegal addresses.
NARROWEST = 64
HOPPER_SHARED_BYTES = 227 * 1024


class Launch(NamedTuple):
    """Tile widths along K and V, warps of a program, loads in flight."""

    BK: int
    BV: int
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int]:
        """The launch's keyword arguments."""
        return self._asdict()


@functools.cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory a program may use."""
    if device.type != "cuda":
        return HOPPER_SHARED_BYTES
    # CUDA keeps 1 KiB a block for itself.
    return torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor - 1024


@functools.cache
def launches(
    key_dim: int, value_dim: int, itemsize: int, device: torch.device
) -> dict[str, Launch]:
    """The launch of each kernel for these widths (numbers of `itemsize` bytes)."""
    key_width = max(NARROWEST, triton.next_power_of_2(key_dim))
    value_width = max(NARROWEST, triton.next_power_of_2(value_dim))
    half = itemsize == 2
    warps, memory = 4 if half else 8, shared_bytes(device)

    def over_time(tiles: int) -> Launch:
        # All of K in one tile, as the state stays in registers; `tiles` [CHUNK, K] loads a chunk.
        stage = tiles * CHUNK * key_width * itemsize
        stages = max(1, min(3, int(0.75 * memory) // stage)) if half else 1
        return Launch(key_width, 64, 8 if key_width > 128 else warps, stages)

    # Measured on an H200 (bf16, K = V = 128); with less shared memory, what fits 99 KiB at K = 128.
    roomy = half and memory >= HOPPER_SHARED_BYTES
    chunk = Launch(64, 64, warps, 2 if roomy else 1)
    return {
        "solve": chunk,
        "states": over_time(2),
        "output": Launch(64, 128, 8, 3) if roomy and value_width >= 128 else chunk,
        "recompute": chunk,
        "dstates": over_time(3),
        "output_gradient": Launch(128, 64, 8, 3) if roomy and key_width >= 128 else chunk,
        "solve_gradient": Launch(64, 64, 4, 2 if roomy else 1),
    }
