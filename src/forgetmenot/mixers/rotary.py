"""Rotary position embedding (Su et al., arXiv 2104.09864), halves convention."""

import torch


def rotate(x_BLHD: torch.Tensor, position_BL: torch.Tensor, theta: float | None) -> torch.Tensor:
    """Rotate the pairs (x_d, x_{d + D/2}) by position * theta**(-2d/D); theta None: unchanged.

    Angles are computed in float32 whatever x's dtype; padding (position -1) is harmless.
    """
    if theta is None:
        return x_BLHD
    half = x_BLHD.shape[-1] // 2
    exponent = torch.arange(half, device=x_BLHD.device, dtype=torch.float32) / half
    angle_BL1D = position_BL[:, :, None, None].float() * theta**-exponent
    cos, sin = angle_BL1D.cos().to(x_BLHD.dtype), angle_BL1D.sin().to(x_BLHD.dtype)
    first, second = x_BLHD.split(half, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
