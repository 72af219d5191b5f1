"""Causal depthwise convolution with SiLU and a state of its last inputs."""

from forgetmenot_kernels.short_conv.api import short_conv, short_conv_step

__all__ = ["short_conv", "short_conv_step"]
