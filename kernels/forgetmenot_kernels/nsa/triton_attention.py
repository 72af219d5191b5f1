# mypy: allow-untyped-calls
"""Native sparse attention on the GPU: autograd around the kernels."""

from typing import Any, NamedTuple

import torch
import triton

from forgetmenot_kernels.lte_attention import triton_attention as lte
from forgetmenot_kernels.nsa.triton_backward import finish_kernel, key_kernel, query_kernel
from forgetmenot_kernels.nsa.triton_choose import (
    block_queries_kernel,
    choose_kernel,
    unite_kernel,
)
from forgetmenot_kernels.nsa.triton_forward import compress_kernel, select_kernel
from forgetmenot_kernels.nsa.triton_frame import Call, Frame
from forgetmenot_kernels.nsa.triton_tiles import pool_kernel
from forgetmenot_kernels.packing import Packing

LOG2_E = 1.4426950408889634
# bytes of the blocks' importance that exist at once
IMPORTANCE_BYTES = 2**28
# rows (queries x heads of a group) that one program of the keys' gradient walks over; fewer in
# float32, where the rounding of a long sum is what errors are made of
ITEM_ROWS, FLOAT32_ITEM_ROWS = 4096, 512
# most chunks of queries, and least queries of one, for the pooled keys' gradient
CHUNKS, CHUNK = 64, 64


class _Saved(NamedTuple):
    """What the backward pass needs."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    gate: torch.Tensor
    pooled_k: torch.Tensor
    pooled_v: torch.Tensor
    compressed: torch.Tensor  # outputs of the branches
    picked: torch.Tensor | None
    near: torch.Tensor
    compressed_lse: torch.Tensor
    lse: torch.Tensor
    bits: torch.Tensor
    block: torch.Tensor  # lists of the tiles
    queries: torch.Tensor
    length: torch.Tensor


class _Sparse(torch.autograd.Function):
    """The gated sum of compression, selection and the window's output, which is given."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BTGD: torch.Tensor,
        k_BTHD: torch.Tensor,
        v_BTHD: torch.Tensor,
        gate_BTG3: torch.Tensor,
        near_BTGD: torch.Tensor,
        call: Call,
        learning: bool,
    ) -> torch.Tensor:
        frame = Frame(q_BTGD, k_BTHD, call)
        pooled_k, pooled_v = (
            q_BTGD.new_empty((parts, frame.step)) for parts in (frame.k_parts, frame.v_parts)
        )
        pool_kernel[(frame.blocks, frame.heads)](
            k_BTHD, v_BTHD, pooled_k, pooled_v, frame.block_places, **frame.where, BN=64,
            K_PARTS=frame.k_parts, V_PARTS=frame.v_parts, SHIFT=frame.shift, **frame.constants,
        )  # fmt: skip
        compressed, compressed_lse, bits = _compress(frame, q_BTGD, pooled_k, pooled_v)
        lists = _unite(frame, bits)
        o = torch.empty_like(q_BTGD)
        picked = torch.empty_like(q_BTGD) if learning else None
        lse = torch.empty_like(compressed_lse)
        select_kernel[(frame.tiles, frame.heads)](
            q_BTGD, k_BTHD, v_BTHD, gate_BTG3, compressed, near_BTGD, o, picked, lse, *lists,
            frame.places, call.scale * LOG2_E, **frame.where, room=frame.room,
            **frame.launch(frame.config.select),
        )  # fmt: skip
        ctx.frame = frame
        saved = _Saved(
            q_BTGD, k_BTHD, v_BTHD, gate_BTG3, pooled_k, pooled_v, compressed, picked, near_BTGD,
            compressed_lse, lse, bits, *lists,
        )  # fmt: skip
        ctx.save_for_backward(*saved)
        return o

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        frame: Frame = ctx.frame
        saved = _Saved(*ctx.saved_tensors)
        do = grads[0].contiguous()
        dq, dnear = torch.empty_like(saved.q), torch.empty_like(do)
        dgate = torch.empty_like(saved.gate, dtype=torch.float32)
        query_kernel[(frame.tiles, frame.heads)](
            *saved[:9], do, saved.compressed_lse, saved.lse, dq, dgate, dnear, *saved[-3:],
            frame.places, frame.call.scale, frame.call.scale * LOG2_E, **frame.where,
            room=frame.room, step=frame.step, K_PARTS=frame.gradient_parts, SHIFT=frame.shift,
            **frame.launch(frame.config.query),
        )  # fmt: skip
        dk, dv = _key_gradients(frame, saved, do, dgate)
        return dq, dk, dv, dgate.to(saved.gate.dtype), dnear, None, None


def _compress(
    frame: Frame, q_BTGD: torch.Tensor, pooled_k: torch.Tensor, pooled_v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention over pooled blocks, its log-sum-exp and the bits of the chosen blocks."""
    compressed = torch.empty_like(q_BTGD)
    lse = q_BTGD.new_empty(q_BTGD.shape[:3], dtype=torch.float32)
    tokens = frame.batch * frame.time
    bits = lse.new_empty((frame.heads, triton.cdiv(frame.P, 32), tokens), dtype=torch.int32)
    tiles = frame.config.compress
    queries = frame.queries_of(tiles)
    count, places = frame.table(queries)
    words = triton.next_power_of_2(bits.shape[1])
    at_once = max(1, min(queries, 16 // words))  # 512 blocks' importance: no sums across warps
    step = max(1, IMPORTANCE_BYTES // (4 * frame.heads * queries * frame.P))
    for tile in range(0, count, step):
        now = min(step, count - tile)
        importance = lse.new_empty((frame.heads, now * queries, frame.P))
        compress_kernel[(now, frame.heads)](
            q_BTGD, pooled_k, pooled_v, compressed, lse, importance, places,
            frame.call.scale * LOG2_E, **frame.where, tile0=tile, step=frame.step,
            SUM_PARTS=frame.gradient_parts, K_PARTS=frame.k_parts, V_PARTS=frame.v_parts,
            SHIFT=frame.shift, **frame.launch(tiles),
        )  # fmt: skip
        choose_kernel[(now * queries // at_once, frame.heads)](
            importance, bits, places, **frame.where, N=tokens, tile0=tile,
            BLOCK=frame.call.block, S=frame.call.selected, BQ=queries, BR=at_once,
            WORDS=words, PACKED=places is not None, num_warps=1 if words <= 64 else 8,
        )  # fmt: skip
    return compressed, lse, bits


def _unite(frame: Frame, bits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The list of blocks of each tile of queries."""
    shape = (frame.heads, frame.tiles, frame.room)
    block = bits.new_empty(shape)
    queries = bits.new_empty(shape, dtype=torch.int64)
    count = bits.new_empty(shape[:2])
    unite_kernel[(frame.tiles, frame.heads)](
        bits, block, queries, count, frame.places, **frame.where, N=bits.shape[2], room=frame.room,
        BLOCK=frame.call.block, BQ=frame.queries, BP=64, PACKED=frame.places is not None,
        num_warps=1 if frame.queries <= 8 else 4,
    )  # fmt: skip
    return block, queries, count


def _key_gradients(
    frame: Frame, saved: _Saved, do: torch.Tensor, dgate: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of keys and values through both branches."""
    q, k, v, gate, pooled_k, pooled_v = saved[:6]
    bits = saved.bits
    scale_log2 = frame.call.scale * LOG2_E
    config, heads, block = frame.config, frame.heads, frame.call.block
    width = k.shape[3]
    # the queries of each block
    rows = FLOAT32_ITEM_ROWS if q.dtype == torch.float32 else ITEM_ROWS
    room = max(1, rows // frame.padded)
    tokens = bits.shape[2]
    count = bits.new_empty((heads * frame.blocks,))
    chosen = heads * tokens * min(frame.P, frame.call.selected)
    most = triton.cdiv(chosen, room) + len(count)
    query, item = bits.new_empty((chosen,)), bits.new_empty((most,))
    past, past_item = None, None
    for fill in (False, True):
        if fill:
            past, past_item = count.cumsum(0), ((count + room - 1) // room).cumsum(0)
        block_queries_kernel[(frame.blocks, heads)](
            bits, count, past, past_item, query, item, frame.block_places, **frame.where,
            N=tokens, room=room, BLOCK=block, BT=1024, PACKED=frame.places is not None, FILL=fill,
        )  # fmt: skip

    def parts(*shape: int) -> list[torch.Tensor]:
        return [q.new_empty((*shape, width), dtype=torch.float32) for _ in range(2)]

    chunk = max(CHUNK, triton.cdiv(frame.longest, CHUNKS))
    chunks = triton.cdiv(frame.longest, chunk)
    pooled_parts = parts(chunks, frame.blocks, heads)
    pooled_tiles, pooled_places = frame.table(config.pooled_key.BN * block)
    lists = query, item, count, past, past_item
    tiles = config.pooled_key
    key_kernel[(pooled_tiles * chunks * heads,)](
        q, pooled_k, pooled_v, gate, do, saved.compressed_lse, dgate, *pooled_parts, *lists,
        pooled_places, scale_log2, **frame.where,
        blocks=frame.blocks, chunks=chunks, room=chunk, COMPRESSED=True,
        step=frame.step, K_PARTS=frame.gradient_parts, SHIFT=frame.shift, **frame.launch(tiles),
    )  # fmt: skip
    tiles = config.key
    turns = triton.cdiv(block, tiles.BN)
    picked_parts = parts(most * turns, tiles.BN)
    key_kernel[(most * turns,)](
        q, k, v, gate, do, saved.lse, dgate, *picked_parts, *lists,
        frame.block_places, scale_log2, **frame.where,
        blocks=frame.blocks, chunks=1, room=room, COMPRESSED=False,
        step=0, K_PARTS=1, SHIFT=1.0, **frame.launch(tiles),
    )  # fmt: skip
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    finish_kernel[(frame.blocks, heads, turns)](
        *picked_parts, *pooled_parts, dk, dv, count, past_item, frame.block_places,
        frame.call.scale, **frame.where, chunk=chunk, room=room, BN=tiles.BN,
        BP=config.pooled_key.BN, **frame.constants, num_warps=4 if frame.width < 128 else 8,
    )  # fmt: skip
    return dk, dv


def attention(
    q_BTGD: torch.Tensor,
    k_BTHD: torch.Tensor,
    v_BTHD: torch.Tensor,
    gate_BTG3: torch.Tensor,
    block: int,
    selected: int,
    window: int,
    scale: float,
    packing: Packing | None,
) -> torch.Tensor:
    """As the public `nsa_attention`, for arguments that it has checked.

    Raises TypeError or ValueError for what `lte_attention`'s kernels, which are the window branch,
    do not take: float64 and mixed dtypes, head dims above 256, a scale that is not positive.
    """
    borders = None if packing is None else packing.cu_seqlens
    near = lte.attention(q_BTGD, k_BTHD, v_BTHD, None, window, 0, scale, borders, False)
    assert isinstance(near, torch.Tensor)
    return sparse(q_BTGD, k_BTHD, v_BTHD, gate_BTG3, near, Call(block, selected, scale, packing))


def sparse(
    q_BTGD: torch.Tensor,
    k_BTHD: torch.Tensor,
    v_BTHD: torch.Tensor,
    gate_BTG3: torch.Tensor,
    near_BTGD: torch.Tensor,
    call: Call,
) -> torch.Tensor:
    """The gated sum of compression, selection and the window's output `near`; differentiable."""
    tensors = [x.contiguous() for x in (q_BTGD, k_BTHD, v_BTHD, gate_BTG3, near_BTGD)]
    learning = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    o: torch.Tensor = _Sparse.apply(*tensors, call, learning)
    return o
