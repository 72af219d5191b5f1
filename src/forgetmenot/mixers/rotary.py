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
    half = x_BLHD.shape[-1] // 2
    # Apart, since one kernel would compute them anew for every head.
    cos_ND, sin_ND = _tables(position_N, half, theta, x_BLHD.dtype)
    return _rotated(x_NHD, cos_ND, sin_ND).view_as(x_BLHD)


@fused
def _tables(
    position_N: torch.Tensor, half: int, theta: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    exponent = torch.arange(half, device=position_N.device, dtype=torch.float32) / half
    angle_ND = position_N[:, None].float() * theta**-exponent
    return angle_ND.cos().to(dtype), angle_ND.sin().to(dtype)


@fused
def _rotated(x_NHD: torch.Tensor, cos_ND: torch.Tensor, sin_ND: torch.Tensor) -> torch.Tensor:
    cos, sin = cos_ND[:, None], sin_ND[:, None]
    first, second = x_NHD.split(cos.shape[-1], -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
