"""A linear map with a low-rank change of its own for every sequence of the batch."""

from forgetmenot_kernels.low_rank_linear.api import low_rank_linear, low_rank_update

__all__ = ["low_rank_linear", "low_rank_update"]
