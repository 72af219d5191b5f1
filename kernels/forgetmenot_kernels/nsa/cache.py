"""What decoding keeps of a sequence, and the layouts that the forms share.

Shape suffixes: B batch, T queries, C columns (keys), P blocks, S selected blocks, H KV heads,
G query heads, R query heads of one KV head, X = B x H (each KV head of each sequence), D width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Cache(NamedTuple):
    """What decoding reads: slot c holds the token at position c of its sequence.

    `pooled_k_BHPD` and `pooled_v_BHPD` are float32 (float64 for float64 keys): the mean of each
    complete block, and of the block that still grows the sum so far / block size. Slots from
    `length_B` (int64, tokens so far) on are zeros.
    """

    k_BHCD: torch.Tensor
    v_BHCD: torch.Tensor
    pooled_k_BHPD: torch.Tensor
    pooled_v_BHPD: torch.Tensor
    length_B: torch.Tensor


def pool(x_BHCD: torch.Tensor, block: int) -> torch.Tensor:
    """Means over blocks, [B, H, ceil(C / block), D]; the last may lack tokens, taken as zeros."""
    missing = -x_BHCD.shape[2] % block
    return F.pad(wide(x_BHCD), (0, 0, 0, missing)).unflatten(2, (-1, block)).mean(3)


def by_kv_head(x_BTGD: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, T, G, D] as [X, R, T, D]."""
    return x_BTGD.unflatten(2, (heads, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1)


def wide(x: torch.Tensor) -> torch.Tensor:
    """In float32, or float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()
