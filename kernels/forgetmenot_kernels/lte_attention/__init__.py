"""Attention over a window, sinks and the columns that token eviction kept."""

from forgetmenot_kernels.lte_attention.api import Columns, attend, lte_streaming_cap
from forgetmenot_kernels.lte_attention.reference import FOREVER

__all__ = ["FOREVER", "Columns", "attend", "lte_streaming_cap"]
