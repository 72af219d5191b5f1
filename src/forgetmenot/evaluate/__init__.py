"""Evaluators: one task family a file, chosen by name."""
