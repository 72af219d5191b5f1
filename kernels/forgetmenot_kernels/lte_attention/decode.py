"""One token a sequence over the constant-size memory, in place, in PyTorch.

Shape suffixes as in `cache.py`, and G query heads.
"""

import torch

from forgetmenot_kernels.lte_attention.cache import Cache, scores_dtype


def decode(
    q_BGD: torch.Tensor,
    k_BHD: torch.Tensor,
    v_BHD: torch.Tensor,
    cache: Cache,
    window: int,
    sink: int,
    scale: float,
) -> torch.Tensor:
    """See `lte_decode_step`."""
    evict(cache, sink)
    write(cache, k_BHD, v_BHD)
    return read(q_BGD, cache, scale)[0]


def evict(cache: Cache, sink: int) -> None:
    """Move the token that leaves the window into the kept slots, if it may.

    It takes an empty slot, or that of the lowest score (the newest among equals) if its own is
    strictly higher. Only one slot a head is touched.
    """
    if cache.position_BHN.shape[2] == 0:
        return
    window = cache.window
    leaving_B = cache.length_B - window
    batch, heads, _ = cache.position_BHN.shape
    rows = torch.arange(batch, device=leaving_B.device)
    slot_B = leaving_B % window
    is_sink_B1 = (leaving_B < sink)[:, None]
    score_BH = cache.score_BHC[rows, :, slot_B]
    wanted_BH = ((score_BH > 0) | is_sink_B1) & (leaving_B >= 0)[:, None]
    score_BH = score_BH.masked_fill(is_sink_B1, torch.inf)
    kept_BHN = cache.score_BHC[..., window:]
    lowest_BH1 = kept_BHN.amin(-1, keepdim=True)
    newest_BHN = cache.position_BHN.masked_fill(kept_BHN > lowest_BH1, -2)
    target_BH = newest_BHN.argmax(-1)
    enters_BH = wanted_BH & (score_BH > lowest_BH1[..., 0])

    rows, columns = rows[:, None], torch.arange(heads, device=rows.device)
    at = (rows, columns, window + target_BH)
    source = (rows, columns, slot_B[:, None])
    for x in (cache.k_BHCD, cache.v_BHCD):
        x[at] = torch.where(enters_BH[..., None], x[source], x[at])
    cache.score_BHC[at] = torch.where(enters_BH, score_BH, cache.score_BHC[at])
    at = (rows, columns, target_BH)
    cache.position_BHN[at] = torch.where(enters_BH, leaving_B[:, None], cache.position_BHN[at])


def write(cache: Cache, k_BHD: torch.Tensor, v_BHD: torch.Tensor) -> None:
    """Put the new token in the window, with score 0 until its score is known."""
    slot_B = cache.length_B % cache.window
    rows = torch.arange(len(slot_B), device=slot_B.device)
    cache.k_BHCD[rows, :, slot_B] = k_BHD
    cache.v_BHCD[rows, :, slot_B] = v_BHD
    if cache.score_BHC.shape[2]:
        # a plain 0 would be copied from the host, which a CUDA graph cannot hold
        cache.score_BHC[rows, :, slot_B] = cache.score_BHC.new_zeros(())
    cache.length_B.add_(1)


def read(q_BGD: torch.Tensor, cache: Cache, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over all filled slots: o [B, G, D] and the weights [B, H, G / H, C]."""
    near_B1W = torch.arange(cache.window, device=q_BGD.device) < cache.length_B[:, None, None]
    kept_BHN = cache.position_BHN >= 0
    seen_BHC = torch.cat((near_B1W.expand(-1, kept_BHN.shape[1], -1), kept_BHN), 2)
    return read_slots(q_BGD, cache.k_BHCD, cache.v_BHCD, seen_BHC, scale)


def read_slots(
    q_BGD: torch.Tensor,
    k_BHCD: torch.Tensor,
    v_BHCD: torch.Tensor,
    seen_BHC: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one query a sequence over the slots that it sees, without copying them.

    Returns o [B, G, D] and the weights [B, H, G / H, C] (float32, float64 beside float64).
    """
    q_BHPD = q_BGD.unflatten(1, (k_BHCD.shape[1], -1))
    logits = (q_BHPD * scale @ k_BHCD.mT).to(scores_dtype(q_BGD))
    weights = logits.masked_fill(~seen_BHC[:, :, None], -torch.inf).softmax(-1)
    return (weights.to(q_BGD.dtype) @ v_BHCD).flatten(1, 2), weights
