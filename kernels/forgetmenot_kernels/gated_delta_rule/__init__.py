"""Gated delta rule: decaying associative memory with error-correcting writes."""

from forgetmenot_kernels.gated_delta_rule.api import gated_delta_rule, gated_delta_rule_step

__all__ = ["gated_delta_rule", "gated_delta_rule_step"]
