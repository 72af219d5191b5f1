"""What a model costs: parameters, bytes of state and FLOPs per token, from its code alone.

The model is built on torch's meta device: shapes without memory, so that a model of any size takes
a moment. Nothing is measured.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from forgetmenot import model as models

COUNTED = (
    "Parameters: all, tied ones once. State: bytes of the content that one sequence leaves in "
    "memory after so many tokens, as float32; integers that only keep the books are left out. "
    "FLOPs: those of the forward pass of one token that has so many tokens before it, all matrix "
    "products and attention with the output head, 2 for a multiply-add; norms, activations, "
    "rotations and the embedding's look-up are left out."
)

# Access to the past in one decoding step (LTE specification, section 1.1).
HIERARCHY = {
    "a": "linear attention",
    "b": "attention with token eviction",
    "c": "query-aware sparse attention",
    "d": "full attention",
}
_LEVELS = {
    **dict.fromkeys(("gdn", "retention", "rwkv4_time", "rwkv7_time"), "a"),
    "lte": "b",
    "nsa": "c",
}
_CHANNEL_MIXERS = ("swiglu", "rwkv4_channel", "rwkv7_channel")


@dataclass(frozen=True)
class Cost:
    """Cost of one model; the dictionaries are by context (tokens before the counted one)."""

    kind: str  # levels of HIERARCHY, for example "(a) + (b)"
    parameters: int
    state_bytes: dict[int, int]
    flops_per_token: dict[int, int]


def of(spec: dict[str, Any], contexts: Iterable[int]) -> Cost:
    """The cost of the model of a spec (see model.py) at some contexts."""
    with torch.device("meta"):
        model = models.build(spec).base
    wanted = list(contexts)
    return Cost(
        kind(spec),
        sum(parameter.numel() for parameter in model.parameters()),
        {context: model.state_bytes(context) for context in wanted},
        {context: model.flops(context) for context in wanted},
    )


def kind(spec: dict[str, Any]) -> str:
    """The levels of the paper's hierarchy that a model's token mixers stand on: "(a) + (b)"."""
    levels = {_level(name, options) for name, options in spec["layers"]} - {""}
    return " + ".join(f"({level})" for level in sorted(levels))


def _level(mixer: str, options: dict[str, Any]) -> str:
    if mixer in _CHANNEL_MIXERS:
        return ""
    if mixer == "attention":
        return "d" if options.get("window") is None else "b"
    return _LEVELS.get(mixer, "other")
