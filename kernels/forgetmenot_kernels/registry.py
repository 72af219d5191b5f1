"""Every operator of this package: its forms, inputs of named shapes, and what a call counts for.

Tests and benchmarks enumerate `OPS`. An operator is imported when it is first called. Bytes are
those of inputs and results, each moved once.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from forgetmenot_kernels import registry_inputs as make
from forgetmenot_kernels.registry_inputs import Inputs, Random, Sizes

ROOT = Path(__file__).resolve().parent
# two gradients of each product; attention also forms its scores again
BACKWARD, ATTENTION_BACKWARD = 2.0, 2.5


class Work(NamedTuple):
    """What a forward pass or step takes at least, and what forward and backward take together."""

    flops: float
    bytes: float
    both_flops: float
    both_bytes: float


@dataclass(frozen=True)
class Op:
    """A public function: `forms[0]` is the default off CUDA, `forms[1]` the definition.

    `shapes` are sizes by name; "tiny" is for tests. `make` gives the inputs, `flops` those of a
    forward pass or step.
    """

    name: str
    folder: str
    forms: tuple[str, ...]
    shapes: Mapping[str, Sizes]
    make: Callable[[Random, Sizes], Inputs]
    flops: Callable[[Sizes, Inputs], float]
    backward: float = BACKWARD  # flops of the backward pass over those of the forward; 0 = none
    read: Callable[[Sizes], float] | None = None  # bytes, where not all inputs are read
    tests: str = ""  # pattern of the test files' names

    @property
    def readme(self) -> Path:
        """The maths and the tiling."""
        return ROOT / self.folder / "README.md"

    @property
    def test_pattern(self) -> str:
        """Pattern of the names of its test files in tests/kernels."""
        return self.tests or f"test_{self.folder}*.py"

    def inputs(self, shape: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Inputs:
        """The inputs of a named shape: the same numbers each time."""
        return self.make(Random(device, dtype), self.shapes[shape])

    def call(self, inputs: Inputs, impl: str | None = None) -> Any:
        """The result of the form asked for."""
        module = importlib.import_module(f"forgetmenot_kernels.{self.folder}")
        return getattr(module, self.name)(*inputs.arguments, **inputs.options, impl=impl)

    def work(self, shape: str, inputs: Inputs, result: Any) -> Work:
        """What a call with these inputs and this result counts for."""
        sizes = self.shapes[shape]
        flops = self.flops(sizes, inputs)
        given, made = _bytes(inputs), _bytes(result)
        moved = (self.read(sizes) if self.read else given) + made
        learned = sum(x.nbytes for x in leaves(inputs))
        # backward: inputs, results and their gradients are read, the inputs' gradients written
        back = given + 2 * made + learned if self.backward else 0
        return Work(flops, moved, flops * (1 + self.backward), moved + back)


def leaves(inputs: Inputs) -> list[torch.Tensor]:
    """The inputs that may have a gradient: all floating-point tensors."""
    return [x for x in _tensors(inputs) if x.is_floating_point()]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _bytes(value: Any) -> int:
    return sum(x.nbytes for x in _tensors(value))


def _sizes(tiny: Sizes, *large: Sizes, **common: int) -> dict[str, Sizes]:
    """Shapes by name: "tiny", and the others named after batch and time or context."""
    shapes: dict[str, Sizes] = {"tiny": {**common, **tiny}}
    for sizes in large:
        at = "time" if "time" in sizes else "context" if "context" in sizes else ""
        name = f"b{sizes['batch']}" + (f"-{at[0]}{sizes[at]}" if at else "")
        shapes[name] = {**common, **sizes}
    return shapes


CHUNKED = ("chunked", "recurrent", "triton")
SHORT = {"batch": 2, "time": 70}
LONG = {"batch": 4, "time": 4096}
BATCHES = ({"batch": 1}, {"batch": 32})
LTE = {"width": 64, "window": 768}
LTE_TINY = {"batch": 2, "heads": 4, "kv_heads": 2, "width": 8, "window": 16}
LTE_STEP = {"heads": 16, "kv_heads": 16, "width": 64, "window": 769, "budget": 512}
NSA = {"heads": 32, "kv_heads": 2, "width": 64, "block": 64, "selected": 16, "window": 512}
NSA_TINY = {"heads": 4, "width": 8, "block": 4, "selected": 3, "window": 6}
HEADS = {"heads": 8, "key": 128, "value": 128}
RWKV7 = {"heads": 16, "key": 64, "value": 64}
HEADS_TINY = {"heads": 2, "key": 8, "value": 8}

OPS = (
    Op("lte_attention", "lte_attention", ("dense", "looped", "triton"),
       _sizes({**LTE_TINY, "time": 70, "kept": 0.25},
              {**LONG, **LTE, "heads": 16, "kv_heads": 16, "kept": 0.125},
              {"batch": 1, "time": 32768, **LTE, "heads": 32, "kv_heads": 8, "kept": 512 / 32768}),
       make.lte, make.lte_flops, ATTENTION_BACKWARD),
    Op("lte_streaming_cap", "lte_attention", ("torch", "triton"),
       _sizes({**LTE_TINY, "time": 70, "kept": 0.5, "budget": 6},
              {**LONG, **LTE, "kv_heads": 16, "kept": 0.25, "budget": 512}),
       make.cap, make.no_flops, 0),
    Op("lte_decode_step", "lte_attention", ("torch", "triton"),
       _sizes({**LTE_TINY, "budget": 5, "context": 40},
              *({"batch": n, "context": c, **LTE_STEP} for n in (1, 32) for c in (1024, 32768))),
       make.lte_step, make.lte_step_flops, 0, tests="test_lte_decode*.py"),
    Op("nsa_attention", "nsa", ("chunked", "looped", "triton"),
       _sizes({**SHORT, **NSA_TINY, "kv_heads": 2}, {**LONG, **NSA})
       | {"b4-t4096-w1": {**LONG, **NSA, "window": 1}},  # as good as without the window branch
       make.nsa, make.nsa_flops, ATTENTION_BACKWARD),
    Op("nsa_decode_step", "nsa", ("gathered", "triton"),
       _sizes({"batch": 2, **NSA_TINY, "kv_heads": 2, "context": 30},
              *({"batch": n, "context": 32768, **NSA} for n in (1, 32))),
       make.nsa_step, make.nsa_step_flops, 0, make.nsa_step_read),
    Op("gated_delta_rule", "gated_delta_rule", CHUNKED,
       _sizes({**SHORT, **HEADS_TINY}, {**LONG, **HEADS}),
       make.delta, make.chunked_flops(1)),
    Op("gated_delta_rule_step", "gated_delta_rule", ("plain", "triton"),
       _sizes({"batch": 2, **HEADS_TINY}, *BATCHES, **HEADS),
       make.delta, make.state_flops(7), 0),
    Op("retention", "retention", CHUNKED,
       _sizes({**SHORT, **HEADS_TINY}, {**LONG, **HEADS}),
       make.retention, make.chunked_flops(0)),
    Op("retention_step", "retention", ("plain", "triton"),
       _sizes({"batch": 2, **HEADS_TINY}, *BATCHES, **HEADS),
       make.retention, make.state_flops(5), 0),
    Op("wkv7", "wkv7", CHUNKED,
       _sizes({**SHORT, **HEADS_TINY}, {**LONG, **RWKV7}),
       make.wkv7, make.state_flops(9)),
    Op("wkv7_step", "wkv7", ("plain", "triton"),
       _sizes({"batch": 2, **HEADS_TINY}, *BATCHES, **RWKV7),
       make.wkv7, make.state_flops(9), 0),
    Op("wkv4", "wkv4", ("scan", "recurrent", "triton"),
       _sizes({**SHORT, "width": 10}, {**LONG, "width": 1024}),
       make.wkv4, make.state_flops(12)),
    Op("wkv4_step", "wkv4", ("plain", "triton"),
       _sizes({"batch": 2, "width": 10}, {"batch": 32, "width": 1024}),
       make.wkv4, make.state_flops(12), 0),
    Op("short_conv", "short_conv", ("shifted", "recurrent", "triton"),
       _sizes({**SHORT, "width": 10, "taps": 4}, {**LONG, "width": 3072, "taps": 4}),
       make.conv, make.conv_flops),
    Op("short_conv_step", "short_conv", ("plain", "triton"),
       _sizes({"batch": 2, "width": 10}, *BATCHES, width=3072, taps=4),
       make.conv, make.conv_flops, 0),
    Op("low_rank_linear", "low_rank_linear", ("factored", "merged", "triton"),
       _sizes({**SHORT, "inputs": 10, "outputs": 12, "rank": 2},
              {"batch": 8, "time": 1024, "inputs": 1024, "outputs": 1024, "rank": 16},
              {"batch": 8, "time": 128, "inputs": 768, "outputs": 3072, "rank": 8}),
       make.low_rank, make.low_rank_flops),
)  # fmt: skip


def op_named(name: str) -> Op:
    """The entry of a public function. Raises ValueError naming those there are."""
    for op in OPS:
        if op.name == name:
            return op
    raise ValueError(f"op: found {name!r}; allowed: {', '.join(op.name for op in OPS)}")
