"""Time of the operators on a GPU beside PyTorch's own attention and the plain PyTorch forms.

Shows no figure for an operator whose GPU tests have not passed in the same state of its code, on
the same device with the same versions; --verify runs them first. Inputs are bfloat16. A step is
timed as a stack of 16 layers in one CUDA graph, all else as it is called.
"""

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from forgetmenot.benchmark import _kernel_report as report
from forgetmenot.benchmark import _kernel_tests as tests
from forgetmenot.benchmark import _kernel_timing as timing
from forgetmenot.errors import UserError
from forgetmenot_kernels.registry import OPS, Op, leaves, op_named
from forgetmenot_kernels.registry_inputs import Inputs

LAYERS = 16  # of a stack of steps
DENSE_BYTES = 8 * 10**9  # of keys and values that the dense stack may hold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.add_argument("--op", nargs="+", help="operators by name; without it: all")
    parser.add_argument("--verify", action="store_true", help="run the GPU tests of these first")
    parser.add_argument("--verify-limit", type=float, help="seconds until those tests are stopped")
    parser.add_argument(
        "--stamps", type=Path, default=Path("work/kernel-tests"), help="what has passed, by code"
    )
    parser.add_argument("--repeats", type=int, default=30, help="most timed calls each")
    parser.add_argument(
        "--first-call",
        action="store_true",
        help="also time first calls, compilation included, where there is a target for them",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns the card's ceilings, a row for each timed call, and what was refused.

    Raises UserError for unknown operators, without a CUDA device, and when nothing may be shown.
    """
    try:
        ops = [op_named(name) for name in options.op] if options.op else list(OPS)
    except ValueError as error:
        raise UserError(str(error)) from None
    if options.repeats < timing.LEAST:
        raise UserError(f"repeats: found {options.repeats}; allowed: {timing.LEAST} or more")
    if not torch.cuda.is_available():
        raise UserError("device: found no CUDA device; this benchmark times kernels on one")
    if options.verify:
        tests.verify(ops, options.stamps, options.verify_limit)
    reasons = {op.name: tests.missing(op, options.stamps) for op in ops}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    if len(refused) == len(ops):
        lines = "\n".join(f"  {name}: {reason}" for name, reason in refused.items())
        raise UserError(f"op: no figure may be shown\n{lines}")
    ops = [op for op in ops if op.name not in refused]
    ceilings = timing.ceilings(options.repeats)
    result = {
        "dtype": "bfloat16",
        "device": torch.cuda.get_device_name(),
        "ceilings": ceilings,
        "first_calls": _first_calls(ops) if options.first_call else {},
        "refused": refused,
    }
    rows: list[dict[str, Any]] = []
    for op in ops:
        for shape in op.shapes:
            if shape == "tiny":
                continue
            for row in _measured(op, shape, options.repeats):
                report.judge(row, rows, ceilings)
                print("\n".join(report.lines(row)), file=sys.stderr)
                rows.append(row)
            torch.cuda.empty_cache()
    return {**result, "rows": rows}


def _first_calls(ops: list[Op]) -> dict[str, dict[str, float]]:
    """Seconds of the first forward and backward pass, with an empty cache of compiled kernels."""
    found = {}
    before = os.environ.get("TRITON_CACHE_DIR")
    for op in ops:
        if op.name not in report.FIRST_CALL:
            continue
        inputs = op.inputs(next(iter(op.shapes.keys() - {"tiny"})), timing.DEVICE, torch.bfloat16)
        torch.cuda.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TRITON_CACHE_DIR"] = folder
            start = time.perf_counter()
            _both(op, inputs, None)()
            torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        found[op.name] = {"seconds": seconds, "target": report.FIRST_CALL[op.name]}
    os.environ.pop("TRITON_CACHE_DIR", None)
    if before is not None:
        os.environ["TRITON_CACHE_DIR"] = before
    return found


def _measured(op: Op, shape: str, repeats: int) -> list[dict[str, Any]]:
    """The rows of one operator and shape."""
    row = {"op": op.name, "shape": shape, "sizes": dict(op.shapes[shape])}
    if "time" not in op.shapes[shape]:
        return [{**row, "pass": report.STEPS, **_stack(op, shape, repeats)}]
    inputs = op.inputs(shape, timing.DEVICE, torch.bfloat16)
    with torch.no_grad():
        work = op.work(shape, inputs, op.call(inputs))
    rows = []
    for what in (report.FORWARD, report.BOTH) if op.backward else (report.FORWARD,):
        peers = {"ours": None, "plain": op.forms[0]}
        makers = {name: functools.partial(_pass, op, inputs, i, what) for name, i in peers.items()}
        if op.name in timing.ATTENTION:
            makers["dense"] = functools.partial(_dense, op, inputs, what)
        if op.name == "lte_attention":
            makers["flex"] = functools.partial(_flex, inputs, what)
        both = what == report.BOTH
        counted = {
            "flops": work.both_flops if both else work.flops,
            "bytes": work.both_bytes if both else work.bytes,
        }
        rows.append({**row, "pass": what, **counted, **_times(makers, repeats)})
    return rows


def _times(makers: Mapping[str, Callable[[], timing.Call]], repeats: int) -> dict[str, Any]:
    """What each contender took, and why one has no time."""
    found: dict[str, Any] = {"notes": {}}
    for name, make in makers.items():
        try:
            found[name] = timing.milliseconds(make(), repeats)
        except Exception as error:  # whatever one fails of, the others' times are still worth it
            found["notes"][name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            torch.cuda.empty_cache()
    return found


def _pass(op: Op, inputs: Inputs, impl: str | None, what: str) -> timing.Call:
    if what == report.FORWARD:
        return torch.no_grad()(functools.partial(op.call, inputs, impl))
    return _both(op, inputs, impl)


def _both(op: Op, inputs: Inputs, impl: str | None) -> timing.Call:
    """A forward pass, and all gradients of its first result."""
    for x in leaves(inputs):
        x.requires_grad_()

    def first() -> torch.Tensor:
        result = op.call(inputs, impl)
        return result if isinstance(result, torch.Tensor) else result[0]

    return _with_gradients(first, leaves(inputs))


def _dense(op: Op, inputs: Inputs, what: str) -> timing.Call:
    return _attention_pass(timing.dense_attention, timing.heads_first(op, inputs), what)


def _flex(inputs: Inputs, what: str) -> timing.Call:
    op = op_named("lte_attention")
    return _attention_pass(timing.flex_attention(inputs), timing.heads_first(op, inputs), what)


def _attention_pass(
    attention: Callable[..., torch.Tensor], heads_first: list[torch.Tensor], what: str
) -> timing.Call:
    own = [x.detach().requires_grad_(what == report.BOTH) for x in heads_first]
    forward = functools.partial(attention, *own)
    return forward if what == report.FORWARD else _with_gradients(forward, own)


def _with_gradients(forward: Callable[[], torch.Tensor], inputs: list[torch.Tensor]) -> timing.Call:
    seed: list[torch.Tensor] = []

    def call() -> None:
        o = forward()
        seed[:] = seed or [torch.randn_like(o)]
        torch.autograd.grad(o, inputs, seed)

    return call


def _stack(op: Op, shape: str, repeats: int) -> dict[str, Any]:
    """One token through `LAYERS` layers, each with a memory of its own."""
    layers = [op.inputs(shape, timing.DEVICE, torch.bfloat16) for _ in range(LAYERS)]

    def stack(impl: str | None) -> None:
        for inputs in layers:
            op.call(inputs, impl)

    calls: dict[str, timing.Call] = {
        "ours": functools.partial(stack, None),
        "plain": functools.partial(stack, op.forms[0]),
    }
    if "context" in op.shapes[shape]:
        calls["dense"] = _dense_stack(op.shapes[shape])
    makers = {name: functools.partial(timing.graphed, call) for name, call in calls.items()}
    with torch.no_grad():
        work = op.work(shape, layers[0], op.call(layers[0]))
        times = _times(makers, repeats)
    return {"flops": LAYERS * work.flops, "bytes": LAYERS * work.bytes, **times}


def _dense_stack(s: Any) -> timing.Call:
    """PyTorch's attention over all of the context; layers share memory that would not fit."""
    kv = (s["batch"], s["kv_heads"], s["context"], s["width"])
    tokens = 4 * s["batch"] * s["kv_heads"] * s["context"] * s["width"]  # bytes
    count = max(1, min(LAYERS, DENSE_BYTES // tokens))
    memory = [
        [torch.randn(kv, device=timing.DEVICE).bfloat16() for _ in "kv"] for _ in range(count)
    ]
    q = torch.randn(s["batch"], s["heads"], 1, s["width"], device=timing.DEVICE).bfloat16()

    def call() -> None:
        for layer in range(LAYERS):
            timing.dense_attention(q, *memory[layer % count])

    return call


def table(found: dict[str, Any]) -> str:
    """The measurement as text."""
    return report.table(found)
