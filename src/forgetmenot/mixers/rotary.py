"""Rotary position embedding (Su et al., arXiv 2104.09864), halves convention."""

import torch

from forgetmenot.fuse import fused


def rotate(x_BLHD: torch.Tensor, position_BL: torch.Tensor, theta: float | None) -> torch.Tensor:
    """Rotate the pairs (x_d, x_{d + D/2}) by position * theta**(-2d/D); theta None: unchanged.

    Angles are computed in float32 whatever x's dtype; padding (position -1) is harmless.
    """
    if theta is None:
        return x_BLHD
    x_NHD = x_BLHD.flatten(0, 1)
    position_N = position_BL.expand(x_BLHD.shape[:2]).flatten()
    return _rotated(x_NHD, position_N, theta).view_as(x_BLHD)


@fused
def _rotated(x_NHD: torch.Tensor, position_N: torch.Tensor, theta: float) -> torch.Tensor:
    half = x_NHD.shape[-1] // 2
    exponent = torch.arange(half, device=x_NHD.device, dtype=torch.float32) / half
    angle_N1D = position_N[:, None, None].float() * theta**-exponent
    cos, sin = angle_N1D.cos().to(x_NHD.dtype), angle_N1D.sin().to(x_NHD.dtype)
    first, second = x_NHD.split(half, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
