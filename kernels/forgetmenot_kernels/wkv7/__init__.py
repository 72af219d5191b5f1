"""WKV of RWKV-7: an associative memory with a decay a channel and a general rank-one update."""

from forgetmenot_kernels.wkv7.api import wkv7, wkv7_step

__all__ = ["wkv7", "wkv7_step"]
