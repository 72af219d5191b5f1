"""Measurements of speed and memory, one file a benchmark; never part of a result or a test."""
