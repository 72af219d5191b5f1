"""One token a sequence, in PyTorch. Shape suffixes as in `cache.py`."""

import torch

from forgetmenot_kernels.nsa.cache import Cache, by_kv_head
from forgetmenot_kernels.nsa.reference import choose_blocks, compress, masked_attention, mix


def gathered_step(
    q_BGD: torch.Tensor,
    k_BHD: torch.Tensor,
    v_BHD: torch.Tensor,
    gate_BG3: torch.Tensor,
    cache: Cache,
    block: int,
    selected: int,
    window: int,
    scale: float,
) -> torch.Tensor:
    """One token a sequence: reads the pooled blocks, the chosen blocks and the window only."""
    batch, heads, capacity, _ = cache.k_BHCD.shape
    length_B = cache.length_B
    row_B = torch.arange(batch, device=length_B.device)
    for x, new in ((cache.k_BHCD, k_BHD), (cache.v_BHCD, v_BHD)):
        x[row_B, :, length_B] = new.to(x.dtype)
    for x, new in ((cache.pooled_k_BHPD, k_BHD), (cache.pooled_v_BHPD, v_BHD)):
        x[row_B, :, length_B // block] += new.to(x.dtype) / block

    q_XRTD = by_kv_head(q_BGD[:, None], heads)
    i_XT = length_B.repeat_interleave(heads)[:, None]
    pooled = cache.pooled_k_BHPD.flatten(0, 1), cache.pooled_v_BHPD.flatten(0, 1)
    compressed, importance_XTP = compress(q_XRTD, *pooled, i_XT, block, scale)
    index_XS = choose_blocks(importance_XTP, i_XT, block, selected)[:, 0]
    offset = torch.arange(block, device=length_B.device)
    back = torch.arange(min(window, capacity), device=length_B.device)
    branches = [compressed]
    x_X1 = torch.arange(batch * heads, device=length_B.device)[:, None]
    for j_XC in ((index_XS[..., None] * block + offset).flatten(1), i_XT - back):
        mask_XTC = ((j_XC >= 0) & (j_XC <= i_XT))[:, None]
        at = x_X1 // heads, x_X1 % heads, j_XC.clamp(0, capacity - 1)
        k_XCD, v_XCD = cache.k_BHCD[at], cache.v_BHCD[at]
        branches.append(masked_attention(q_XRTD, k_XCD, v_XCD, mask_XTC, scale))
    o_XR1D = mix(by_kv_head(gate_BG3[:, None], heads), *branches)
    length_B.add_(1)
    return o_XR1D[:, :, 0].unflatten(0, (batch, heads)).flatten(1, 2).to(v_BHD.dtype)
