"""Sequence operators of forgetmenot: usable on their own, needing torch alone.

One folder an operator: `api.py` validates and dispatches, `reference.py` holds the definition
(a loop over time, the oracle of every test) and the parallel PyTorch form.
Layouts: time is dimension 1, `[B, T, H, D]` per head or `[B, T, D]` per channel.
"""
