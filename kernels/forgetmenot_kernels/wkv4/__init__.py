"""WKV of RWKV-4: a decayed weighted mean of values, per channel."""

from forgetmenot_kernels.wkv4.api import WKV4State, wkv4

__all__ = ["WKV4State", "wkv4"]
