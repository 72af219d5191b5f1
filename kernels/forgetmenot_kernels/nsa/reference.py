"""Native sparse attention in PyTorch: the parallel form, its parts, and the definition.

Shape suffixes as in `cache.py`.
"""

import torch
import torch.nn.functional as F

from forgetmenot_kernels.nsa.cache import Cache, by_kv_head, wide

QUERIES_AT_ONCE = 128  # bounds the masks: [X, 128, C] at a time, not [X, T, C]


def chunked(
    q_BTGD: torch.Tensor,
    cache: Cache,
    gate_BTG3: torch.Tensor,
    block: int,
    selected: int,
    window: int,
    scale: float,
) -> torch.Tensor:
    """Chunks of queries under masks: O(T C) work; O(T C) bits of masks stay for the gradient.

    The queries are the last T tokens of each sequence in the cache, whose longest one fills it.
    """
    time, heads, count = q_BTGD.shape[1], *cache.k_BHCD.shape[1:3]
    k_XCD, v_XCD, pooled_k_XPD, pooled_v_XPD = (x.flatten(0, 1) for x in cache[:4])
    q_XRTD = by_kv_head(q_BTGD, heads)
    gate_XRT3 = by_kv_head(gate_BTG3, heads)
    steps = torch.arange(time, device=q_BTGD.device)
    position_XT = (cache.length_B[:, None] - time + steps).repeat_interleave(heads, 0)
    outputs = []
    for start in range(0, time, QUERIES_AT_ONCE):
        stop = min(time, start + QUERIES_AT_ONCE)
        reach = count - time + stop  # no query of the chunk sees a later column
        # sequences of different lengths have their windows in different places
        low = max(0, start - window + 1) if count == time else 0
        q, i_XT = q_XRTD[:, :, start:stop], position_XT[:, start:stop]
        blocks = -(-reach // block)
        pooled = pooled_k_XPD[:, :blocks], pooled_v_XPD[:, :blocks]
        compressed, importance_XTP = compress(q, *pooled, i_XT, block, scale)
        index_XTS = choose_blocks(importance_XTP, i_XT, block, selected)
        chosen_XTP = torch.zeros_like(importance_XTP, dtype=torch.bool).scatter(-1, index_XTS, True)
        i, j = i_XT[..., None], torch.arange(reach, device=q.device)
        mask_XTC = chosen_XTP.repeat_interleave(block, -1)[..., :reach] & (j <= i)
        picked = masked_attention(q, k_XCD[:, :reach], v_XCD[:, :reach], mask_XTC, scale)
        j = j[low:]
        mask_XTC = (j <= i) & (j > i - window)
        near = masked_attention(q, k_XCD[:, low:reach], v_XCD[:, low:reach], mask_XTC, scale)
        outputs.append(mix(gate_XRT3[:, :, start:stop], compressed, picked, near))
    o_XRTD = torch.cat(outputs, 2)
    return o_XRTD.unflatten(0, (-1, heads)).flatten(1, 2).movedim(2, 1).to(cache.v_BHCD.dtype)


def compress(
    q_XRTD: torch.Tensor,
    pooled_k_XPD: torch.Tensor,
    pooled_v_XPD: torch.Tensor,
    position_XT: torch.Tensor,
    block: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over complete pooled blocks, [X, R, T, D], zero where there is none yet.

    Also the importance of each block, [X, T, P]: its weights, summed over the group.
    """
    p = torch.arange(pooled_k_XPD.shape[1], device=q_XRTD.device)
    complete = p < ((position_XT + 1) // block)[:, None, :, None]
    # a finite floor: a query without any block gets zeros, not the NaN of an empty softmax
    floor = torch.finfo(pooled_k_XPD.dtype).min
    # autocast would round the scores, and other blocks would be chosen
    with torch.autocast(q_XRTD.device.type, enabled=False):
        score = torch.einsum("xrtd,xpd->xrtp", q_XRTD.to(pooled_k_XPD.dtype), pooled_k_XPD)
        weight = (score * scale).masked_fill(~complete, floor).softmax(-1) * complete
        o_XRTD = torch.einsum("xrtp,xpd->xrtd", weight, pooled_v_XPD)
    return o_XRTD, weight.detach().sum(1)


def choose_blocks(
    importance_XTP: torch.Tensor, position_XT: torch.Tensor, block: int, selected: int
) -> torch.Tensor:
    """Indices [X, T, min(S, P)] of the blocks to attend, beyond the query's own one last.

    The first, the previous and the current block come first, then the most important; among
    equals the lowest block index.
    """
    p = torch.arange(importance_XTP.shape[-1], device=importance_XTP.device)
    current = (position_XT // block)[..., None]
    forced = (p == 0) | (p == current - 1) | (p == current)
    rank = importance_XTP.masked_fill(forced, torch.inf).masked_fill(p > current, -torch.inf)
    # a stable sort keeps equals in the order of their index, which topk does not promise
    return rank.sort(dim=-1, descending=True, stable=True).indices[..., :selected]


def masked_attention(
    q_XRTD: torch.Tensor,
    k_XCD: torch.Tensor,
    v_XCD: torch.Tensor,
    mask_XTC: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """PyTorch's attention; keys, values and the mask are views shared by the group."""
    k, v = (x[:, None].expand(-1, q_XRTD.shape[1], -1, -1) for x in (k_XCD, v_XCD))
    return F.scaled_dot_product_attention(q_XRTD, k, v, attn_mask=mask_XTC[:, None], scale=scale)


def mix(gate_XRT3: torch.Tensor, *branches_XRTD: torch.Tensor) -> torch.Tensor:
    """The branches under their gates, added in float32 or wider."""
    gates = wide(gate_XRT3).unbind(-1)
    parts = [g[..., None] * x for g, x in zip(gates, branches_XRTD, strict=True)]
    return parts[0] + parts[1] + parts[2]


def looped(
    q_BTGD: torch.Tensor,
    cache: Cache,
    gate_BTG3: torch.Tensor,
    block: int,
    selected: int,
    window: int,
    scale: float,
) -> torch.Tensor:
    """One query and KV head at a time in float64, written from the README: the tests' oracle."""
    time, heads = q_BTGD.shape[1], cache.k_BHCD.shape[1]
    q_BTHRD = q_BTGD.double().unflatten(2, (heads, -1))
    gate_BTHR3 = gate_BTG3.double().unflatten(2, (heads, -1))
    k_BHCD, v_BHCD = cache.k_BHCD.double(), cache.v_BHCD.double()
    outputs = []
    for b, length in enumerate(cache.length_B.tolist()):
        for i in range(length - time, length):
            for h in range(heads):
                t = i - length + time
                q_RD, k_CD, v_CD = q_BTHRD[b, t, h], k_BHCD[b, h], v_BHCD[b, h]
                complete, current = (i + 1) // block, i // block
                pooled_k_PD, pooled_v_PD = (
                    x[: complete * block].reshape(complete, block, x.shape[1]).mean(1)
                    for x in (k_CD, v_CD)
                )
                weight_RP = (q_RD @ pooled_k_PD.T * scale).softmax(-1)
                importance = weight_RP.sum(0).tolist()
                forced = {0, max(0, current - 1), current}
                others = sorted(set(range(complete)) - forced, key=lambda p: (-importance[p], p))
                blocks = [*forced, *others[: selected - len(forced)]]
                picked = [p * block + n for p in blocks for n in range(block) if p * block + n <= i]
                near = range(max(0, i - window + 1), i + 1)
                o_RD = gate_BTHR3[b, t, h, :, :1] * (weight_RP @ pooled_v_PD)
                for branch, columns in ((1, picked), (2, list(near))):
                    weight_RC = (q_RD @ k_CD[columns].T * scale).softmax(-1)
                    gate_R1 = gate_BTHR3[b, t, h, :, branch, None]
                    o_RD = o_RD + gate_R1 * (weight_RC @ v_CD[columns])
                outputs.append(o_RD)
    o_BTHRD = torch.stack(outputs).unflatten(0, (-1, time, heads))
    return o_BTHRD.flatten(2, 3).to(cache.v_BHCD.dtype)
