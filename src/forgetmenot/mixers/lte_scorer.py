"""LTE's scorer: per KV head, three dilated convolutions over keys and values, then one number."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class HeadwiseConv(nn.Module):
    """Dilated same-padded convolution over time with weights of its own for every head.

    Written as one batched matrix product over shifted copies: on a CPU several times faster than a
    grouped convolution.
    """

    def __init__(self, heads: int, fan_in: int, fan_out: int, taps: int, dilation: int) -> None:
        super().__init__()
        self.taps, self.dilation, self.fan_in = taps, dilation, fan_in
        self.weight = nn.Parameter(torch.empty(heads, taps * fan_in, fan_out))
        self.bias = nn.Parameter(torch.empty(heads, fan_out))

    def forward(self, x_HBTI: torch.Tensor) -> torch.Tensor:
        """[H, B, T, I] to [H, B, T, O]; zeros beyond both ends."""
        _, batch, time, _ = x_HBTI.shape
        if self.taps > 1:
            reach = (self.taps - 1) * self.dilation // 2
            padded = F.pad(x_HBTI, (0, 0, reach, reach))
            starts = range(0, self.taps * self.dilation, self.dilation)
            x_HBTI = torch.cat([padded[:, :, s : s + time] for s in starts], -1)
        y = torch.baddbmm(self.bias[:, None], x_HBTI.flatten(1, 2), self.weight)
        return y.unflatten(1, (batch, time))

    def reset_parameters(self, bias: float | None = None) -> None:
        """Kaiming-normal (fan in, ReLU gain) weights; default convolution bias, or a constant."""
        fan_in = self.taps * self.fan_in
        with torch.no_grad():
            self.weight.normal_(std=math.sqrt(2 / fan_in))
            bound = fan_in**-0.5
            self.bias.uniform_(-bound, bound) if bias is None else self.bias.fill_(bias)


class Scorer(nn.Module):
    """The logit r of keeping a token: r = CNN([k; v]), kept iff r > 0 (specification, 2.1).

    Buffers rank by r itself: the same order as by the score, but without the ties that a
    saturating sigmoid has in floating point.

    Widths 2D -> D -> D/2 -> D/4 -> 1, SiLU and dropout between, keys before rotation; a layer for
    each of `kernels`. The score of a token depends on `margin` tokens on either side. Positions
    outside the sequence are zero in every layer, so that padded and unpadded sequences score
    alike. `sets` of weights: one a head, or a single one for all heads.
    """

    def __init__(
        self, sets: int, head_dim: int, kernels: list[int], dilations: list[int], dropout: float
    ) -> None:
        super().__init__()
        self.sets = sets
        widths = [2 * head_dim // 2**n for n in range(len(kernels) + 1)]
        self.convs = nn.ModuleList(
            HeadwiseConv(sets, widths[n], widths[n + 1], taps, dilation)
            for n, (taps, dilation) in enumerate(zip(kernels, dilations, strict=True))
        )
        self.project = HeadwiseConv(sets, widths[-1], 1, 1, 1)
        self.dropout = nn.Dropout(dropout)
        self.margin = sum((k - 1) * d for k, d in zip(kernels, dilations, strict=True)) // 2

    def reset_parameters(self) -> None:
        """The projection's bias of 0.5 makes everything start as kept."""
        for conv in self.convs.modules():
            if isinstance(conv, HeadwiseConv):
                conv.reset_parameters()
        self.project.reset_parameters(bias=0.5)

    def flops(self) -> int:
        """Forward operations for one token of one head (2 a multiply-add)."""
        weights = sum(m.weight[0].numel() for m in self.modules() if isinstance(m, HeadwiseConv))
        return 2 * weights

    def forward(self, pairs_BTHE: torch.Tensor, token_BT: torch.Tensor | None) -> torch.Tensor:
        """[k; v] of each head [B, T, H, 2D], and what is a token (None = all), to logits [B, T, H].

        Logits are float32, or float64 beside float64 data.
        """
        x = pairs_BTHE.permute(2, 0, 1, 3)
        heads, batch = x.shape[:2]
        if token_BT is not None:
            token = token_BT[..., None].to(x.dtype)
        if self.sets == 1:
            x = x.flatten(0, 1)[None]
            if token_BT is not None:
                token = token.repeat(heads, 1, 1)
        for conv in self.convs:
            x = x if token_BT is None else x * token
            x = F.silu(conv(self.dropout(x)))
        logits = self.project(x).reshape(heads, batch, -1).permute(1, 2, 0)
        return logits if logits.dtype == torch.float64 else logits.float()
