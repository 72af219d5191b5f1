# mypy: allow-untyped-calls
"""Shapes, tile sizes and tables that the kernels of one call share."""

from typing import Any, NamedTuple

import torch
import triton

from forgetmenot_kernels.nsa.triton_tiles import packed_places, tile_count
from forgetmenot_kernels.packing import Packing


class Tiles(NamedTuple):
    """Tile of rows (queries x heads of a group) x tile of columns, warps, pipeline stages, and the
    most registers a thread may have, None = as many as it wants.
    """

    BM: int
    BN: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None


class Config(NamedTuple):
    """Tiles of the kernels; `select` and `query` share lists, hence BM."""

    compress: Tiles
    select: Tiles
    query: Tiles
    pooled_key: Tiles
    key: Tiles


# By head dim, rounded up to a power of two. In half precision no tile is narrower than 64, since
# Triton miscompiles narrower ones for Hopper where a kernel has several products.
HALF = {
    64: Config(
        compress=Tiles(64, 64, 4, 1),
        select=Tiles(64, 64, 4, 2),
        query=Tiles(64, 64, 4, 2, 128),
        pooled_key=Tiles(64, 64, 4, 2),
        key=Tiles(64, 64, 4, 3),
    ),
    128: Config(
        compress=Tiles(64, 64, 8, 1),
        select=Tiles(64, 64, 4, 2),
        query=Tiles(64, 64, 4, 2),
        pooled_key=Tiles(64, 64, 8, 1),
        key=Tiles(64, 64, 8, 2),
    ),
    256: Config(
        compress=Tiles(64, 64, 8, 1),
        select=Tiles(64, 64, 8, 2),
        query=Tiles(64, 64, 8, 1),
        pooled_key=Tiles(64, 64, 8, 1),
        key=Tiles(64, 64, 8, 1),
    ),
}
FLOAT32 = {
    16: Config(*[Tiles(64, 32, 4, 2)] * 5),
    32: Config(*[Tiles(64, 32, 4, 2)] * 5),
    64: Config(*[Tiles(64, 32, 8, 2)] * 5),
    128: Config(*[Tiles(32, 32, 8, 2)] * 5),
    256: Config(*[Tiles(32, 32, 8, 1)] * 5),
}


class Call(NamedTuple):
    """What does not change between the kernels of one call."""

    block: int
    selected: int
    scale: float
    packing: Packing | None


class Frame:
    """Shapes, tiles and tables that the kernels of one call share."""

    def __init__(self, q_BTGD: torch.Tensor, k_BTHD: torch.Tensor, call: Call) -> None:
        batch, time, heads_q, width = q_BTGD.shape
        packing, block = call.packing, call.block
        longest = time if packing is None else packing.longest
        self.call = call
        self.batch, self.time, self.heads = batch, time, k_BTHD.shape[2]
        self.group = heads_q // self.heads
        self.padded = int(triton.next_power_of_2(self.group))
        half = q_BTGD.dtype != torch.float32
        self.width = max(64 if half else 16, int(triton.next_power_of_2(width)))
        self.config = (HALF if half else FLOAT32)[self.width]
        self.queries = self.queries_of(self.config.select)
        self.longest = longest
        self.P = triton.cdiv(longest, block)  # blocks of a sequence, at most
        self.tiles, self.places = self.table(self.queries)  # of `select` and `query`
        self.blocks, self.block_places = self.table(block)
        self.room = min(self.P, self.queries * call.selected)  # of a tile's list
        self.where = {"T": time, "P": self.P}
        self.constants: dict[str, Any] = {
            "H": self.heads, "D": width, "BLOCK_D": self.width, "BLOCK": block,
            "PACKED": packing is not None,
        }  # fmt: skip
        self.group_constants = {
            **self.constants, "R": self.group, "RP": self.padded,
        }  # fmt: skip
        # The choice follows the scores of pooled blocks, so that these are as exact as float32.
        # Gradients do with fewer parts.
        parts = {torch.float32: (1, 1, 1), torch.float16: (2, 2, 2), torch.bfloat16: (3, 2, 2)}
        self.k_parts, self.v_parts, self.gradient_parts = parts[q_BTGD.dtype]
        self.shift = 2 / torch.finfo(q_BTGD.dtype).eps  # what is left is no larger than the part
        self.step = self.blocks * self.heads * width  # between parts

    def queries_of(self, tiles: Tiles) -> int:
        """Queries of a tile."""
        return max(tiles.BM, self.padded) // self.padded

    def launch(self, tiles: Tiles) -> dict[str, Any]:
        """Compile-time arguments and options of a kernel with these tiles."""
        return {**self.group_constants, **tiles._asdict(), "BM": max(tiles.BM, self.padded)}

    def table(self, size: int) -> tuple[int, torch.Tensor | None]:
        """Number of tiles of `size` tokens and where they lie, None when they are regular."""
        packing = self.call.packing
        if packing is None:
            return tile_count(size, self.batch, self.time, None), None
        tiles = tile_count(size, 1, self.time, packing.documents)
        return tiles, packed_places(packing.cu_seqlens, size, self.call.block, tiles)
