"""forgetmenot: a reproducibility pipeline for two papers on forgetting in fixed-size-memory language models."""

__version__ = "0.1.0"
