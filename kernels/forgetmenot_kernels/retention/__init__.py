"""Retention of RetNet: an associative memory with one fixed decay a head."""

from forgetmenot_kernels.retention.api import retention, retention_step

__all__ = ["retention", "retention_step"]
