"""Public entries of LTE attention: validation and dispatch.

The one semantics (window W counts the current token): query i sees column j iff
`j <= i and (i - j < W or j < sink or i < visible_until[j])`. Source: LTE (arXiv 2510.20787), the
A-plus-column mask; how the cap applies is ours (docs/semantics.md).
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import torch

from forgetmenot_kernels.checks import check_floating, check_shape, choose
from forgetmenot_kernels.lte_attention.cache import Cache
from forgetmenot_kernels.lte_attention.decode import decode
from forgetmenot_kernels.lte_attention.reference import (
    FOREVER,
    dense_attention,
    looped_attention,
    whole_sequence,
    whole_sequence_looped,
)
from forgetmenot_kernels.lte_attention.segment_cap import segment_cap
from forgetmenot_kernels.lte_attention.streaming_cap import Slots, streaming_cap
from forgetmenot_kernels.packing import Packing, make_packing, pad, unpad
from forgetmenot_kernels.triton_device import check_triton_device, default_form


class Columns(NamedTuple):
    """Keys and values that queries may see, with what decides who sees them.

    `position_BCH` (int64) is the place in the sequence, -1 for empty slots; its last dimension is 1
    when all heads share it. `visible_until_BCH` (integers) is the first query that no longer sees
    the column outside window and sinks: 0 = never kept, FOREVER = never evicted.
    """

    k_BCHD: torch.Tensor
    v_BCHD: torch.Tensor
    position_BCH: torch.Tensor
    visible_until_BCH: torch.Tensor | None = None


@overload
def lte_attention(
    q_BTGD: torch.Tensor,
    k_BTHD: torch.Tensor,
    v_BTHD: torch.Tensor,
    visible_until_BTH: torch.Tensor | None = None,
    *,
    window: int | None,
    sink: int = 0,
    scale: float | None = None,
    cu_seqlens: torch.Tensor | Packing | None = None,
    return_lse: Literal[False] = False,
    impl: str | None = None,
) -> torch.Tensor: ...
@overload
def lte_attention(
    q_BTGD: torch.Tensor,
    k_BTHD: torch.Tensor,
    v_BTHD: torch.Tensor,
    visible_until_BTH: torch.Tensor | None = None,
    *,
    window: int | None,
    sink: int = 0,
    scale: float | None = None,
    cu_seqlens: torch.Tensor | Packing | None = None,
    return_lse: Literal[True],
    impl: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]: ...
def lte_attention(
    q_BTGD: torch.Tensor,
    k_BTHD: torch.Tensor,
    v_BTHD: torch.Tensor,
    visible_until_BTH: torch.Tensor | None = None,
    *,
    window: int | None,
    sink: int = 0,
    scale: float | None = None,
    cu_seqlens: torch.Tensor | Packing | None = None,
    return_lse: bool = False,
    impl: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of whole sequences under the rule above.

    Args:
        q_BTGD: queries; query head g reads KV head g // (G / H).
        k_BTHD, v_BTHD: keys and values.
        visible_until_BTH: integers: first query that no longer sees the column outside window and
            sinks; 0 = never kept, T = never evicted. None = nothing is kept.
        window: W, or None for no limit (full causal attention).
        sink: number of first tokens that stay visible.
        scale: of the scores; D**-0.5 when None.
        cu_seqlens: borders [N + 1] of documents packed into one row (B = 1); positions, and with
            them sinks and `visible_until`, start anew at each.
        return_lse: also return the log-sum-exp of the scaled scores of each query.
        impl: "triton" (default on CUDA; half precision or float32, D at most 256, scale above 0),
            "dense" (default elsewhere; masks and PyTorch's attention) or "looped" (the definition).

    Returns:
        o [B, T, G, D] in v's dtype, and with `return_lse` the log-sum-exp [B, T, G] (float32, or
        float64 beside float64).

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.
    """
    batch, time, heads, width = q_BTGD.shape
    kv_heads = k_BTHD.shape[2]
    _check_attention(q_BTGD, k_BTHD, v_BTHD, (batch, time, kv_heads, width), window)
    if visible_until_BTH is not None:
        check_shape("visible_until", visible_until_BTH, (batch, time, kv_heads), "[B, T, H]")
    scale = width**-0.5 if scale is None else scale
    if cu_seqlens is not None:
        check_shape("q", q_BTGD, (1, time, heads, width), "[1, T, G, D] beside cu_seqlens")
        cu_seqlens = make_packing(cu_seqlens, time)
    forms: dict[str, Callable[..., Any]] = {
        "dense": functools.partial(_padded, whole_sequence),
        "looped": functools.partial(_padded, whole_sequence_looped),
        "triton": _triton,
    }
    run = choose(forms, impl or default_form(q_BTGD, "dense"))
    o, lse = run(
        q_BTGD, k_BTHD, v_BTHD, visible_until_BTH, window, sink, scale, return_lse, cu_seqlens
    )
    return (o, lse) if return_lse else o


def _padded(
    attention: Callable[..., Any],
    q_BTGD: torch.Tensor,
    k_BTHD: torch.Tensor,
    v_BTHD: torch.Tensor,
    visible_until_BTH: torch.Tensor | None,
    window: int | None,
    sink: int,
    scale: float,
    return_lse: bool,
    packing: Packing | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A PyTorch form; documents become the rows of a batch."""
    if packing is not None:
        q_BTGD, k_BTHD, v_BTHD = (pad(x, packing) for x in (q_BTGD, k_BTHD, v_BTHD))
        if visible_until_BTH is not None:
            visible_until_BTH = pad(visible_until_BTH, packing)
    o, lse = attention(q_BTGD, k_BTHD, v_BTHD, visible_until_BTH, window, sink, scale, return_lse)
    if packing is not None:
        o, lse = unpad(o, packing), None if lse is None else unpad(lse, packing)
    return o, lse


def _triton(
    q_BTGD: torch.Tensor,
    k_BTHD: torch.Tensor,
    v_BTHD: torch.Tensor,
    visible_until_BTH: torch.Tensor | None,
    window: int | None,
    sink: int,
    scale: float,
    return_lse: bool,
    packing: Packing | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The kernels; Triton is imported when it is needed, since not every platform has it."""
    check_triton_device("q", q_BTGD)
    form = importlib.import_module("forgetmenot_kernels.lte_attention.triton_attention")
    borders = None if packing is None else packing.cu_seqlens
    found = form.attention(
        q_BTGD, k_BTHD, v_BTHD, visible_until_BTH, window, sink, scale, borders, return_lse
    )
    return found if return_lse else (found, None)


def attend(
    q_BTGD: torch.Tensor,
    columns: Columns,
    position_BT: torch.Tensor,
    *,
    window: int | None,
    sink: int = 0,
    scale: float | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """Attention of a segment over columns at any positions, under the rule above.

    Args:
        q_BTGD: queries; query head g reads KV head g // (G / H).
        columns: keys, values and their visibility.
        position_BT: int64 position of each query.
        window: W, or None for no limit (full causal attention).
        sink: number of first tokens that stay visible.
        scale: of the scores; D**-0.5 when None.
        impl: "dense" (default; a mask and PyTorch's attention) or "looped" (the definition).

    Returns:
        o [B, T, G, D] in v's dtype.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.
    """
    batch, time, _, width = q_BTGD.shape
    shape = (batch, *columns.k_BCHD.shape[1:3], width)
    _check_attention(q_BTGD, columns.k_BCHD, columns.v_BCHD, shape, window)
    check_shape("position", position_BT, (batch, time), "[B, T]")
    scale = width**-0.5 if scale is None else scale
    run = choose({"dense": dense_attention, "looped": looped_attention}, impl)
    return run(q_BTGD, *columns, position_BT, window, sink, scale)[0]


def lte_streaming_cap(
    score_BTH: torch.Tensor,
    *,
    window: int,
    sink: int,
    budget: int | None,
    cu_seqlens: torch.Tensor | Packing | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """Which queries see each column beyond the window: the streaming top-b of whole sequences.

    As query i arrives, token i - W leaves the window; with a positive score (or as a sink) it
    enters the buffer. A full buffer gives up its lowest non-sink entry to a strictly higher score;
    among equal lowest the newest goes.

    Args:
        score_BTH: scores; positive = keep. They carry no gradient.
        window, sink, budget: W, number of sinks, b (None = no cap, as in training).
        cu_seqlens: borders [N + 1] of documents packed into one row (B = 1).
        impl: "triton" (default on CUDA) or "torch" (default elsewhere; a step a token).

    Returns:
        visible_until [B, T, H], int32: 0 = never kept, T = never evicted; for a token that has not
        left the window by the end, whether its score is positive.

    Raises:
        ValueError: a wrong shape, or a budget smaller than the sinks.
    """
    if budget is not None and budget < sink:
        raise ValueError(f"budget: found {budget}; allowed: at least the {sink} sinks")
    total = score_BTH.shape[1]
    packing = None if cu_seqlens is None else make_packing(cu_seqlens, total)
    run = choose(
        {"torch": _cap_by_steps, "triton": _cap_triton},
        impl or default_form(score_BTH, "torch"),
    )
    until_BTH: torch.Tensor = run(score_BTH.detach(), window, sink, budget, packing)
    return until_BTH.clamp(max=total)


def lte_segment_cap(
    score_BCH: torch.Tensor,
    position_BC: torch.Tensor,
    held: Slots,
    *,
    window: int,
    sink: int,
    budget: int | None,
    impl: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The streaming top-b in a segment that continues sequences (see `lte_streaming_cap`).

    Args:
        score_BCH: scores of the W tokens before the segment and of the segment's; positive = keep.
        position_BC: int64 positions of these, -1 for what is no token.
        held: what each head holds from before, in any order.
        window, sink, budget: W, number of sinks, b (None = no cap, as in training).
        impl: "triton" (default on CUDA; one walk over all columns) or "torch" (a step a query).

    Returns:
        visible_until of the columns [B, C, H] and of the held entries [B, N, H], int32: a position,
        0 = never kept, FOREVER = never evicted.

    Raises:
        ValueError: fewer than W columns.
    """
    queries = score_BCH.shape[1] - window
    if queries < 0:
        raise ValueError(f"score: found {score_BCH.shape[1]} columns; allowed: {window} or more")
    form = impl or default_form(score_BCH, "torch")
    if form == "torch" or not budget:
        return streaming_cap(score_BCH, position_BC, queries, window, sink, budget, held)
    whole = functools.partial(lte_streaming_cap, window=window, sink=0, budget=budget, impl=impl)
    return segment_cap(whole, score_BCH, position_BC, sink, held)


def _cap_by_steps(
    score: torch.Tensor, window: int, sink: int, budget: int | None, packing: Packing | None
) -> torch.Tensor:
    score = score if packing is None else pad(score, packing)
    batch, time, heads = score.shape
    position_BT = torch.arange(time, device=score.device).expand(batch, time)
    none = Slots(score.new_zeros(batch, 0, heads), position_BT.new_zeros(batch, 0, heads))
    until, _ = streaming_cap(score, position_BT, time, window, sink, budget, none)
    if packing is None:
        return until
    # what only fills up the row evicts nothing, and lets nothing into the buffer
    length_N11 = packing.lengths_N[:, None, None]
    place = position_BT[..., None]
    until = until.masked_fill(until >= length_N11, FOREVER)
    wanted = ((score > 0) | (place < sink)) & (budget != 0)
    until = torch.where(place < length_N11 - window, until, wanted.int() * FOREVER)
    return unpad(until, packing)


def _cap_triton(
    score: torch.Tensor, window: int, sink: int, budget: int | None, packing: Packing | None
) -> torch.Tensor:
    check_triton_device("score", score)
    form = importlib.import_module("forgetmenot_kernels.lte_attention.triton_cap")
    borders = None if packing is None else packing.cu_seqlens
    return form.streaming_cap(score, window, sink, budget, borders)


def lte_decode_step(
    q_BGD: torch.Tensor,
    k_BHD: torch.Tensor,
    v_BHD: torch.Tensor,
    cache: Cache,
    *,
    window: int,
    sink: int = 0,
    scale: float | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """One new token for every sequence; the memory is changed in place, and never copied.

    First the token that leaves the window is kept or dropped by its score in `cache.score_BHC`
    (which the caller has filled in by then), then the new token is written, then read.

    Args:
        q_BGD, k_BHD, v_BHD: query, key and value of the new token.
        cache: the memory; each sequence may have its own length.
        window, sink: W, which must be the cache's, and the number of sinks.
        scale: of the scores; D**-0.5 when None.
        impl: "triton" (default on CUDA; half precision or float32, no gradients; can be captured
            in a CUDA graph) or "torch" (default elsewhere).

    Returns:
        o [B, G, D] in v's dtype.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.
    """
    batch, _, width = q_BGD.shape
    heads = cache.k_BHCD.shape[1]
    _check_attention(q_BGD[:, None], k_BHD[:, None], v_BHD[:, None], (batch, 1, heads, width), None)
    if window != cache.window:
        raise ValueError(f"window: found {window}; allowed: the cache's {cache.window}")
    scale = width**-0.5 if scale is None else scale
    run = choose({"torch": decode, "triton": _decode_triton}, impl or default_form(q_BGD, "torch"))
    return run(q_BGD, k_BHD, v_BHD, cache, window, sink, scale)


def _decode_triton(q_BGD: torch.Tensor, *args: Any) -> torch.Tensor:
    check_triton_device("q", q_BGD)
    form = importlib.import_module("forgetmenot_kernels.lte_attention.triton_decode")
    return form.decode(q_BGD, *args)


def _check_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    shape: tuple[int, int, int, int],
    window: int | None,
) -> None:
    check_floating("q", q)
    if q.shape[2] % shape[2]:
        raise ValueError(f"q: found {q.shape[2]} heads; allowed: a multiple of {shape[2]} KV heads")
    check_shape("k", k, shape, "[B, C, H, D]")
    check_shape("v", v, shape, "[B, C, H, D]")
    if window is not None and window < 1:
        raise ValueError(f"window: found {window}; allowed: at least 1, or None")
