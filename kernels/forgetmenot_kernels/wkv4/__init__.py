"""WKV of RWKV-4: a decayed weighted mean of values, per channel."""

from forgetmenot_kernels.wkv4.api import wkv4, wkv4_step
from forgetmenot_kernels.wkv4.reference import WKV4State

__all__ = ["WKV4State", "wkv4", "wkv4_step"]
