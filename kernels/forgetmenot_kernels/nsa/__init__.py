"""Native sparse attention: pooled blocks, the blocks chosen by them, and a window, gated."""

from forgetmenot_kernels.nsa.api import (
    nsa_attention,
    nsa_cache,
    nsa_cached_attention,
    nsa_decode_step,
)
from forgetmenot_kernels.nsa.cache import Cache

__all__ = ["Cache", "nsa_attention", "nsa_cache", "nsa_cached_attention", "nsa_decode_step"]
