"""LTE attention in PyTorch: the visibility rule, and attention under it, dense and as a loop.

Shape suffixes: B batch, T queries, C columns, H KV heads, G query heads, D width.
"""

import torch
import torch.nn.functional as F

FOREVER = 2**31 - 1  # visible_until of a column that is never evicted (int32)
CHUNK = 64  # queries of a whole sequence at once: what is later than all of them costs nothing


def visible(
    position_BT: torch.Tensor,
    position_BCH: torch.Tensor,
    visible_until_BCH: torch.Tensor | None,
    window: int | None,
    sink: int,
) -> torch.Tensor:
    """The mask [B, H or 1, T, C]."""
    i = position_BT[:, None, :, None]
    j = position_BCH.permute(0, 2, 1)[:, :, None, :]
    mask = (j <= i) & (j >= 0)
    if window is None:
        return mask
    near = (j > i - window) | (j < sink)
    if visible_until_BCH is not None:
        # in memory, too: the mask inherits the layout, and attention reads it by rows
        until = visible_until_BCH.permute(0, 2, 1).contiguous()
        near = near | (i < until[:, :, None, :])
    return mask & near


def dense_attention(
    q_BTGD: torch.Tensor,
    k_BCHD: torch.Tensor,
    v_BCHD: torch.Tensor,
    position_BCH: torch.Tensor,
    visible_until_BCH: torch.Tensor | None,
    position_BT: torch.Tensor,
    window: int | None,
    sink: int,
    scale: float,
    return_lse: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """PyTorch's attention under the mask: O(T C), fast on CPUs at the lengths used there."""
    groups = q_BTGD.shape[2] // k_BCHD.shape[2]
    mask = visible(position_BT, position_BCH, visible_until_BCH, window, sink)
    if mask.shape[1] > 1:
        mask = mask.repeat_interleave(groups, 1)
    q, k, v = _by_query_head(q_BTGD, k_BCHD, v_BCHD)
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)
    return o, _log_sum_exp(q, k, mask, scale) if return_lse else None


def causal_attention(
    q_BTGD: torch.Tensor, k_BTHD: torch.Tensor, v_BTHD: torch.Tensor, scale: float
) -> torch.Tensor:
    """Full causal attention of a whole sequence, without building a mask."""
    q, k, v = _by_query_head(q_BTGD, k_BTHD, v_BTHD)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(1, 2)


def whole_sequence(
    q_BTGD: torch.Tensor,
    k_BTHD: torch.Tensor,
    v_BTHD: torch.Tensor,
    visible_until_BTH: torch.Tensor | None,
    window: int | None,
    sink: int,
    scale: float,
    return_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Dense attention of whole sequences, a chunk of queries at a time."""
    batch, time = q_BTGD.shape[:2]
    everything = window is None or (window >= time and visible_until_BTH is None)
    if everything and not return_lse:
        return causal_attention(q_BTGD, k_BTHD, v_BTHD, scale), None
    position_T = torch.arange(time, device=q_BTGD.device)
    near_only = window is not None and visible_until_BTH is None and sink == 0
    outputs, sums = [], []
    for start in range(0, time, CHUNK):
        stop = min(start + CHUNK, time)
        first = max(0, start - window + 1) if near_only and window is not None else 0
        o, lse = dense_attention(
            q_BTGD[:, start:stop],
            k_BTHD[:, first:stop],
            v_BTHD[:, first:stop],
            position_T[first:stop].view(1, -1, 1).expand(batch, -1, -1),
            None if visible_until_BTH is None else visible_until_BTH[:, first:stop],
            position_T[start:stop].expand(batch, -1),
            window,
            sink,
            scale,
            return_lse,
        )
        outputs.append(o)
        sums.append(lse)
    whole_lse = torch.cat([x for x in sums if x is not None], 1) if return_lse else None
    return torch.cat(outputs, 1), whole_lse


def looped_attention(
    q_BTGD: torch.Tensor,
    k_BCHD: torch.Tensor,
    v_BCHD: torch.Tensor,
    position_BCH: torch.Tensor,
    visible_until_BCH: torch.Tensor | None,
    position_BT: torch.Tensor,
    window: int | None,
    sink: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One query and head at a time over the columns it sees: the oracle of the tests."""
    batch, time, heads, _ = q_BTGD.shape
    kv_heads = k_BCHD.shape[2]
    position_BCH = position_BCH.expand(-1, -1, kv_heads)
    rows, sums = [], []
    for b in range(batch):
        for t in range(time):
            i = int(position_BT[b, t])
            for g in range(heads):
                h = g * kv_heads // heads
                seen = []
                for c, j in enumerate(position_BCH[b, :, h].tolist()):
                    until = 0 if visible_until_BCH is None else int(visible_until_BCH[b, c, h])
                    near = window is None or i - j < window or j < sink or i < until
                    if 0 <= j <= i and near:
                        seen.append(c)
                logit = k_BCHD[b, seen, h] @ q_BTGD[b, t, g] * scale
                rows.append(logit.softmax(0) @ v_BCHD[b, seen, h])
                sums.append(logit.logsumexp(0))
    shape = (batch, time, heads)
    return torch.stack(rows).unflatten(0, shape), torch.stack(sums).unflatten(0, shape)


def whole_sequence_looped(
    q_BTGD: torch.Tensor,
    k_BTHD: torch.Tensor,
    v_BTHD: torch.Tensor,
    visible_until_BTH: torch.Tensor | None,
    window: int | None,
    sink: int,
    scale: float,
    return_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The definition, for whole sequences."""
    batch, time = q_BTGD.shape[:2]
    position_BT = torch.arange(time, device=q_BTGD.device).expand(batch, time)
    columns = (k_BTHD, v_BTHD, position_BT[..., None], visible_until_BTH)
    o, lse = looped_attention(q_BTGD, *columns, position_BT, window, sink, scale)
    return o, lse if return_lse else None


def _by_query_head(
    q_BTGD: torch.Tensor, k_BCHD: torch.Tensor, v_BCHD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Heads first, and each KV head repeated for the query heads that read it."""
    groups = q_BTGD.shape[2] // k_BCHD.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q_BTGD, k_BCHD, v_BCHD))
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return q, k, v


def _log_sum_exp(
    q_BGTD: torch.Tensor, k_BGCD: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """[B, T, G], summed in float32 or wider."""
    dtype = torch.float64 if q_BGTD.dtype == torch.float64 else torch.float32
    logits = q_BGTD.to(dtype) * scale @ k_BGCD.to(dtype).mT
    return logits.masked_fill(~mask, -torch.inf).logsumexp(-1).transpose(1, 2)
