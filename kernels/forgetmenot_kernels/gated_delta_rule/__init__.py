"""Gated delta rule: decaying associative memory with error-correcting writes."""

from forgetmenot_kernels.gated_delta_rule.api import gated_delta_rule

__all__ = ["gated_delta_rule"]
