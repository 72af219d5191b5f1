"""A reproducibility pipeline for two papers on forgetting in fixed-size memories."""

__version__ = "0.1.0"
