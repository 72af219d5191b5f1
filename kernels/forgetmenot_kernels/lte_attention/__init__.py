"""Attention over a window, sinks and the columns that token eviction kept."""

from forgetmenot_kernels.lte_attention.api import (
    Columns,
    attend,
    lte_attention,
    lte_decode_step,
    lte_segment_cap,
    lte_streaming_cap,
)
from forgetmenot_kernels.lte_attention.cache import Cache
from forgetmenot_kernels.lte_attention.decode import read_slots
from forgetmenot_kernels.lte_attention.reference import FOREVER

__all__ = [
    "FOREVER",
    "Cache",
    "Columns",
    "attend",
    "lte_attention",
    "lte_decode_step",
    "lte_segment_cap",
    "lte_streaming_cap",
    "read_slots",
]
