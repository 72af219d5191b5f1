"""A small prompt-forgetting set and small real models, for the tests of ProSG's evaluation."""

from typing import Any

import torch

from forgetmenot import model as models
from forgetmenot.data import prosg_pf
from forgetmenot.data.prosg.evalset import Record
from forgetmenot.data.prosg.world import World

SET = prosg_pf.Options(
    entities=32,
    relations=4,
    values=16,
    templates=4,
    attributes=4,
    attribute_values=16,
    triggers=16,
    codes=16,
    keywords=16,
    filler_words=64,
    filler_classes=8,
    filler_tokens=20_000,
    splits=["iid"],
    modes=["interfering", "self"],
    facts=[4],
    dense_facts=[],
    rules=0,
    personas=1,
    distances=[0, 48, 80],
    long_distances=[],
    samples=5,
)
LAYERS: dict[str, list[list[Any]]] = {
    "gdn": [["gdn", {"heads": 2, "key_dim": 8, "value_dim": 8}], ["swiglu", {"width": 32}]],
    "rwkv4": [["rwkv4_time", {}], ["rwkv4_channel", {"width": 32}]],
    "attention": [
        ["attention", {"heads": 2, "kv_heads": 2, "head_dim": 8}],
        ["swiglu", {"width": 32}],
    ],
    "pinned": [
        [
            "eviction",
            {"heads": 2, "kv_heads": 2, "head_dim": 8, "window": 24, "sink": 4, "budget": 4}
            | {"policy": "sink"},
        ],
        ["swiglu", {"width": 32}],
    ],
}


def make(world: World, name: str, prosg: dict[str, Any] | None = None) -> Any:
    """A small model of random weights; with ProSG its update is not zero."""
    spec = {"hidden": 16, "vocab": len(world.tokens), "layers": LAYERS[name] * 2}
    spec |= {"norm_eps": 1e-6, "tie_embeddings": True, "init_std": None, "prosg": prosg}
    model = models.build(spec)
    model.init_parameters(0)
    if prosg is not None and prosg["generator"] != "frozen_read":
        generator = torch.Generator().manual_seed(1)
        for head in model.generator.left.values():
            head.weight.data.normal_(std=0.1, generator=generator)
    return model.eval()


def others(records: list[Record]) -> list[Record]:
    return [*records[1:], records[0]]


def ids(world: World, text: str) -> torch.Tensor:
    return torch.from_numpy(world.encode(text))[None]


def tensors(part: Any) -> list[Any]:
    """All numbers of a nesting, as lists that can be compared."""
    if isinstance(part, torch.Tensor):
        return [part.tolist()]
    if isinstance(part, dict):
        part = list(part.values())
    return [x for p in part for x in tensors(p)] if isinstance(part, tuple | list) else []
