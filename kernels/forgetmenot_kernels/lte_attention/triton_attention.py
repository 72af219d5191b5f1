# mypy: allow-untyped-calls
"""LTE attention on the GPU: autograd around the kernels, and their tile sizes.

Cost: O(T (window + visible kept columns)) products forward; backward, a column that is evicted is
walked over together with its neighbours in the list until the last of them is.
"""

from typing import Any, NamedTuple

import torch
import triton

from forgetmenot_kernels.lte_attention.triton_backward import (
    kept_kernel,
    query_kernel,
    window_kernel,
)
from forgetmenot_kernels.lte_attention.triton_compact import Kept, compact
from forgetmenot_kernels.lte_attention.triton_forward import forward_kernel

LOG2_E = 1.4426950408889634
# programs of the kept columns' backward that keep a large GPU busy
BUSY = 792


class Tiles(NamedTuple):
    """Tile of queries x tile of columns, warps and pipeline stages of a kernel, and the most
    registers a thread may have, None = as many as it wants.
    """

    BM: int
    BN: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None


class Config(NamedTuple):
    """Tiles of the two walks over columns and the two over queries."""

    forward: Tiles
    query: Tiles
    kept: Tiles
    window: Tiles


# By head dim, rounded up to a power of two. Up to 64, measured on Hopper: what counts is programs
# on an SM, four with 128 registers and three with 168, though a few are spilled.
NARROW = Config(
    forward=Tiles(64, 64, 4, 3, 128),
    query=Tiles(64, 64, 4, 2, 128),
    kept=Tiles(64, 64, 4, 3, 168),
    window=Tiles(64, 64, 4, 3, 168),
)
HALF = {
    16: NARROW,
    32: NARROW,
    64: NARROW,
    128: Config(Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 2), *[Tiles(64, 64, 8, 2)] * 2),
    256: Config(Tiles(128, 64, 8, 2), Tiles(64, 32, 8, 2), *[Tiles(32, 64, 8, 2)] * 2),
}
FLOAT32 = {
    16: Config(*[Tiles(64, 32, 4, 2)] * 2, *[Tiles(32, 64, 4, 2)] * 2),
    32: Config(*[Tiles(64, 32, 4, 2)] * 2, *[Tiles(32, 64, 4, 2)] * 2),
    64: Config(Tiles(64, 32, 4, 2), Tiles(64, 32, 8, 2), *[Tiles(32, 32, 8, 2)] * 2),
    128: Config(Tiles(64, 32, 8, 2), *[Tiles(32, 32, 8, 2)] * 3),
    256: Config(*[Tiles(32, 32, 8, 2)] * 4),
}


class Call(NamedTuple):
    """What does not change between the kernels of one call."""

    window: int
    sink: int
    scale: float
    begin_T: torch.Tensor | None
    end_T: torch.Tensor | None
    with_lse: bool


def _block(width: int) -> int:
    return max(16, int(triton.next_power_of_2(width)))


def _config(q_BTGD: torch.Tensor) -> Config:
    table = FLOAT32 if q_BTGD.dtype == torch.float32 else HALF
    return table[_block(q_BTGD.shape[-1])]


def _launch(q_BTGD: torch.Tensor, k_BTHD: torch.Tensor, tiles: Tiles) -> dict[str, Any]:
    """Compile-time arguments that all kernels take, and options."""
    heads, width = k_BTHD.shape[2:]
    return {
        "H": heads,
        "G": q_BTGD.shape[2] // heads,
        "D": width,
        "BLOCK_D": _block(width),
        "PRECISION": "ieee",  # of float32 products; half precision has one form only
        "SHORT": q_BTGD.shape[1] < max(tiles.BM, tiles.BN),
        **tiles._asdict(),
    }


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BTGD: torch.Tensor,
        k_BTHD: torch.Tensor,
        v_BTHD: torch.Tensor,
        visible_until_BTH: torch.Tensor | None,
        call: Call,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch, time, heads_q, _ = q_BTGD.shape
        heads = k_BTHD.shape[2]
        kept = None
        if call.window < time and (visible_until_BTH is not None or call.sink > 0):
            kept = compact(
                visible_until_BTH, call.begin_T, call.end_T, (batch, time, heads), call.window,
                call.sink, q_BTGD.device,
            )  # fmt: skip
        o_BTGD = torch.empty_like(q_BTGD)
        lse_BGT = q_BTGD.new_empty((batch, heads_q, time), dtype=torch.float32)
        tiles = _config(q_BTGD).forward
        segment, segments = _segments(kept)
        forward_kernel[(batch * heads_q * triton.cdiv(time, tiles.BM),)](
            q_BTGD, k_BTHD, v_BTHD, o_BTGD, lse_BGT, call.begin_T, *_lists(kept),
            call.scale * LOG2_E, time, call.window, segment, segments,
            HAS_KEPT=kept is not None, PACKED=call.begin_T is not None,
            **_launch(q_BTGD, k_BTHD, tiles),
        )  # fmt: skip
        ctx.call, ctx.segment = call, segment
        ctx.save_for_backward(q_BTGD, k_BTHD, v_BTHD, o_BTGD, lse_BGT, *_lists(kept))
        ctx.set_materialize_grads(False)
        return o_BTGD, lse_BGT

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        do_BTGD, dlse_BGT = grads
        q_BTGD, k_BTHD, v_BTHD, o_BTGD, lse_BGT, *lists = ctx.saved_tensors
        call: Call = ctx.call
        kept = None if lists[0] is None else Kept._make((*lists, ctx.segment))
        do_BTGD = torch.zeros_like(o_BTGD) if do_BTGD is None else do_BTGD.contiguous()
        dlse_BGT = dlse_BGT.contiguous() if call.with_lse and dlse_BGT is not None else None
        batch, time, heads_q, width = q_BTGD.shape
        heads = k_BTHD.shape[2]
        config = _config(q_BTGD)
        segment, segments = _segments(kept)
        scale_log2 = call.scale * LOG2_E
        dq_BTGD, dk_BTHD, dv_BTHD = map(torch.empty_like, (q_BTGD, k_BTHD, v_BTHD))
        stats_BGT2 = lse_BGT.new_empty((*lse_BGT.shape, 2))

        query_kernel[(batch * heads_q * triton.cdiv(time, config.query.BM),)](
            q_BTGD, k_BTHD, v_BTHD, o_BTGD, do_BTGD, lse_BGT, dlse_BGT, stats_BGT2, dq_BTGD,
            call.begin_T, *lists, call.scale, scale_log2, time, call.window, segment, segments,
            HAS_KEPT=kept is not None, PACKED=call.begin_T is not None,
            HAS_DLSE=dlse_BGT is not None, **_launch(q_BTGD, k_BTHD, config.query),
        )  # fmt: skip
        shared = (q_BTGD, k_BTHD, v_BTHD, do_BTGD, stats_BGT2)
        wanted = triton.cdiv(BUSY, batch * heads)
        parts: tuple[torch.Tensor | None, ...] = (None, None)
        if kept is not None:
            tiles = config.kept
            programs = batch * heads * triton.cdiv(time, tiles.BN)
            rows = programs * tiles.BN * width
            parts = tuple(lse_BGT.new_empty(rows) for _ in range(2))
            kept_kernel[(programs,)](
                *shared, *parts, kept.column_BHSC, kept.until_BHSC, kept.count_BHS,
                scale_log2, time, call.window, segments, wanted,
                **_launch(q_BTGD, k_BTHD, tiles),
            )  # fmt: skip
        tiles = config.window
        window_kernel[(batch * heads * triton.cdiv(time, tiles.BN),)](
            *shared, dk_BTHD, dv_BTHD, *parts, call.end_T, lists[2], lists[4],
            call.scale, scale_log2, time, call.window, segments, wanted,
            KEPT_BN=config.kept.BN, HAS_KEPT=kept is not None, PACKED=call.end_T is not None,
            **_launch(q_BTGD, k_BTHD, tiles),
        )  # fmt: skip
        return dq_BTGD, dk_BTHD, dv_BTHD, None, None


def _lists(kept: Kept | None) -> tuple[torch.Tensor | None, ...]:
    return (None,) * 5 if kept is None else kept[:5]


def _segments(kept: Kept | None) -> tuple[int, int]:
    """Queries of a segment and number of segments; both unused when nothing is kept."""
    return (1, 1) if kept is None else (kept.segment, kept.column_BHSC.shape[2] - 1)


def document_borders(cu_seqlens: torch.Tensor, time: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First token and last + 1 of each token's document, int32 [T], without waiting."""
    tokens = torch.arange(time, device=cu_seqlens.device)
    document_T = torch.searchsorted(cu_seqlens.long(), tokens, right=True) - 1
    return cu_seqlens[document_T].int(), cu_seqlens[document_T + 1].int()


def attention(
    q_BTGD: torch.Tensor,
    k_BTHD: torch.Tensor,
    v_BTHD: torch.Tensor,
    visible_until_BTH: torch.Tensor | None,
    window: int | None,
    sink: int,
    scale: float | None,
    cu_seqlens: torch.Tensor | None,
    return_lse: bool,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention in which query i sees column j <= i iff i - j < window, j < sink or
    i < visible_until[j]; see `lte_attention`, which checks the arguments and documents them.

    Args:
        q_BTGD, k_BTHD, v_BTHD: float32, float16 or bfloat16 of one dtype; head dim at most 256.
        visible_until_BTH: int32, counted in the token's document; None = nothing kept.
        window: None = every earlier token.
        cu_seqlens: borders of documents in a row (batch 1), on the tensors' device.

    Returns:
        o [B, T, heads of q, D], and with return_lse the natural logarithm of the softmax's
        denominator, float32 [B, T, heads of q]; both differentiable.

    Raises:
        TypeError, ValueError: a dtype, head dim or scale that the kernels do not take.
    """
    time, width = q_BTGD.shape[1], q_BTGD.shape[3]
    if q_BTGD.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"q: found {q_BTGD.dtype}; allowed: float32, float16 or bfloat16")
    if not q_BTGD.dtype == k_BTHD.dtype == v_BTHD.dtype:
        found = f"{q_BTGD.dtype}, {k_BTHD.dtype}, {v_BTHD.dtype}"
        raise TypeError(f"q, k, v: found {found}; allowed: one dtype")
    if width > 256:
        raise ValueError(f"q: found head dim {width}; allowed: at most 256")
    scale = width**-0.5 if scale is None else scale
    if scale <= 0:
        raise ValueError(f"scale: found {scale}; allowed: positive")
    if visible_until_BTH is not None:
        visible_until_BTH = visible_until_BTH.int().contiguous()
    begin_T, end_T = None, None
    if cu_seqlens is not None:
        begin_T, end_T = document_borders(cu_seqlens, time)
    window = time if window is None else min(window, time)
    call = Call(window, sink, scale, begin_T, end_T, return_lse)
    o_BTGD, lse_BGT = _Attention.apply(
        q_BTGD.contiguous(), k_BTHD.contiguous(), v_BTHD.contiguous(), visible_until_BTH, call
    )
    return (o_BTGD, lse_BGT.transpose(1, 2)) if return_lse else o_BTGD
