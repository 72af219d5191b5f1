"""Public entries of LTE attention: validation and dispatch.

The one semantics (window W counts the current token): query i sees column j iff
`j <= i and (i - j < W or j < sink or i < visible_until[j])`.
"""

from typing import NamedTuple

import torch

from forgetmenot_kernels.checks import check_floating, check_shape, choose
from forgetmenot_kernels.lte_attention.reference import (
    Slots,
    dense_attention,
    looped_attention,
    streaming_cap,
)


class Columns(NamedTuple):
    """Keys and values that queries may see, with what decides who sees them.

    `position_BCH` (int64) is the place in the sequence, -1 for padding and empty slots; its last
    dimension is 1 when all heads share it. `visible_until_BCH` (int64) is the first query that no
    longer sees the column outside window and sinks: 0 = never kept, FOREVER = never evicted.
    """

    k_BCHD: torch.Tensor
    v_BCHD: torch.Tensor
    position_BCH: torch.Tensor
    visible_until_BCH: torch.Tensor | None = None


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
    """Softmax attention of queries over columns under the rule above.

    Args:
        q_BTGD: queries; their number of heads is a multiple of the columns' heads.
        columns: keys, values and their visibility.
        position_BT: int64 position of each query, -1 for padding (whose output means nothing).
        window: W, or None for no limit (full causal attention).
        sink: number of first tokens that stay visible.
        scale: of the scores; D**-0.5 when None.
        impl: "dense" (default; a mask and PyTorch's attention) or "looped" (the definition).

    Returns:
        o [B, T, heads of q, D] in v's dtype.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.

    Source: LTE (arXiv 2510.20787), the A-plus-column mask; docs/semantics.md.
    """
    batch, time, heads, width = q_BTGD.shape
    _, count, kv_heads, _ = columns.k_BCHD.shape
    check_floating("q", q_BTGD)
    if heads % kv_heads:
        raise ValueError(f"q: found {heads} heads; allowed: a multiple of {kv_heads} KV heads")
    check_shape("k", columns.k_BCHD, (batch, count, kv_heads, width), "[B, C, H, D]")
    check_shape("v", columns.v_BCHD, (batch, count, kv_heads, width), "[B, C, H, D]")
    check_shape("position", position_BT, (batch, time), "[B, T]")
    if window is not None and window < 1:
        raise ValueError(f"window: found {window}; allowed: at least 1, or None")
    run = choose({"dense": dense_attention, "looped": looped_attention}, impl)
    scale = width**-0.5 if scale is None else scale
    return run(q_BTGD, *columns, position_BT, window, sink, scale)


def lte_streaming_cap(
    score_BCH: torch.Tensor,
    position_BC: torch.Tensor,
    queries: int,
    *,
    window: int,
    sink: int,
    budget: int | None,
    held: Slots | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which queries see each column beyond the window: the streaming top-b.

    The columns are consecutive tokens of which the last `queries` are the queries themselves.
    As query i arrives, token i - W leaves the window; with a positive score (or as a sink) it
    enters the buffer. A full buffer gives up its lowest non-sink entry to a strictly higher score;
    among equal lowest the newest goes.

    Args:
        score_BCH: scores; positive = keep.
        position_BC: int64 positions, -1 for padding.
        queries: number of queries among the columns.
        window, sink, budget: W, number of sinks, b (None = no cap, as in training).
        held: what an earlier segment holds (score and position [B, N, H]); None = nothing.

    Returns:
        visible_until of the columns [B, C, H] and of the held entries [B, N, H], int64.

    Raises:
        ValueError: a wrong shape, or a budget smaller than the sinks.
    """
    batch, count, heads = score_BCH.shape
    check_shape("position", position_BC, (batch, count), "[B, C]")
    if budget is not None and budget < sink:
        raise ValueError(f"budget: found {budget}; allowed: at least the {sink} sinks")
    if held is None:
        held = Slots(score_BCH.new_zeros(batch, 0, heads), position_BC.new_zeros(batch, 0, heads))
    return streaming_cap(score_BCH, position_BC, queries, window, sink, budget, held)
