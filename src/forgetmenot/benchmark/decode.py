"""Time and memory of one decoding step after contexts of different lengths.

A model with random weights reads random tokens in chunks, once, and its state is set aside at each
context. Then single tokens follow, the contexts by turns, so that noise of the machine hits all.
"""

import argparse
import copy
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from forgetmenot import model as models
from forgetmenot.benchmark._device_kernels import kernels
from forgetmenot.benchmark._trace import Trace, record
from forgetmenot.cli.evaluate import device
from forgetmenot.decode_graph import DecodeGraph, tensors
from forgetmenot.errors import UserError

# Narrow, so that a CPU is quick, but with so large a cache that nothing else in a step is as large.
SMALL = ("recall-4l-d256", 769, 512)
WARMUP = 3
# Some work comes every so many tokens (laLTE scores 32 at once), so one step is not enough.
TRACED = 33
QUARTILES = torch.tensor((0.25, 0.75), dtype=torch.float64)
SHOWN = 5  # operators that a profile lists
KERNELS = 12  # kernels that it lists


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.add_argument("--variant", default="gdn_lte", help="file in models/")
    parser.add_argument(
        "--size",
        help=f"file in sizes/, 0.4B or 1.4B; without one: {SMALL[0]} with the paper's window of "
        f"{SMALL[1]} and budget of {SMALL[2]} tokens",
    )
    parser.add_argument(
        "--spec",
        type=Path,
        help="a model's spec (JSON, such as a trained model's config.json) instead of variant and "
        "size: does without the configuration and what reads it",
    )
    parser.add_argument("--window", type=int, help="instead of the size's own, where there is one")
    parser.add_argument("--budget", type=int, help="instead of the size's own, where there is one")
    parser.add_argument("--contexts", nargs="+", type=int, default=[2000, 20000], help="tokens")
    parser.add_argument("--batch", type=int, default=1, help="sequences at once")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=100, help="timed steps at each context")
    parser.add_argument("--chunk", type=int, default=256, help="tokens read at once before")
    parser.add_argument("--vocab", type=int, default=1000, help="tokens of the vocabulary")
    parser.add_argument("--profile", action="store_true", help="list what a step copies and runs")
    parser.add_argument(
        "--graph", action="store_true", help="steps as CUDA graphs; refused where that cannot be"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns the options, and for each context what `_measured` says.

    Raises UserError for options that are no counts.
    """
    o = options
    for name in ("batch", "repeats", "chunk", "vocab", *(("contexts",) * len(o.contexts))):
        value = min(o.contexts) if name == "contexts" else getattr(o, name)
        if value < 1:
            raise UserError(f"{name}: found {value}; allowed: 1 or more")
    where = device(o.device)
    if o.graph and where != "cuda":
        raise UserError(f"graph: found device {where}; allowed: cuda")
    spec = _spec(o)
    with torch.device(where):
        model = models.build(spec).to(getattr(torch, o.dtype)).eval()
        model.init_parameters(0)
    contexts = sorted(set(o.contexts))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        runs = [
            Sequence(model, state, context, random, o, where)
            for context, state in _states(model, contexts, random, o, where)
        ]
        for n in range(WARMUP + o.repeats):
            for run in runs:
                seconds = run.step()
                if n >= WARMUP:
                    run.seconds.append(seconds)
        measured = [_measured(run, o.profile) for run in runs]
    first, last = measured[0], measured[-1]
    return {
        "options": {**vars(o), "spec": o.spec and str(o.spec), "device": where},
        "contexts": measured,
        "ratio": last["ms_per_token"] / first["ms_per_token"],
    }


def _spec(o: argparse.Namespace) -> dict[str, Any]:
    if o.spec is not None:
        if o.size is not None:
            raise UserError("spec: found beside a size; allowed: one of the two")
        o.variant, o.size = o.spec.stem, "its own size"
        spec = _read_spec(o)
    else:
        spec = _variant(o)
    for _, layer in spec["layers"]:
        for key in ("window", "budget"):
            if layer.get(key) is not None and getattr(o, key) is not None:
                layer[key] = getattr(o, key)
    return spec


def _read_spec(o: argparse.Namespace) -> dict[str, Any]:
    try:
        spec: dict[str, Any] = json.loads(o.spec.read_text(encoding="utf-8"))
        return {**spec, "layers": list(spec["layers"]), "vocab": spec["vocab"] or o.vocab}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{o.spec}: not a readable model spec ({error!r})") from error


def _variant(o: argparse.Namespace) -> dict[str, Any]:
    # here, since the configuration needs packages that a machine which only measures may lack
    from forgetmenot import variants

    if o.size is None:
        window, budget = SMALL[1:]
        o.size, o.window, o.budget = SMALL[0], o.window or window, o.budget or budget
    return variants.spec(o.variant, o.size, o.vocab, variants.library())


class Sequence:
    """A batch of sequences after `context` tokens that goes on one token a step."""

    def __init__(
        self,
        model: Any,
        state: Any,
        context: int,
        random: torch.Generator,
        o: argparse.Namespace,
        where: str,
    ) -> None:
        self.model, self.state, self.context = model, state, context
        self.random, self.batch, self.where = random, o.batch, where
        self.seconds: list[float] = []
        self.graph = None
        if o.graph:
            try:
                self.graph = DecodeGraph(model, state, self._tokens(1))
            except ValueError as error:
                raise UserError(f"graph: {error}") from None

    def step(self) -> float:
        """Go on by one random token; returns the seconds it took."""
        ids_B1 = self._tokens(1)
        _wait(self.where)
        start = time.perf_counter()
        self._read(ids_B1)
        _wait(self.where)
        return time.perf_counter() - start

    def steps(self, count: int) -> Callable[[], None]:
        """A function that goes on by so many random tokens."""
        ids_BT = self._tokens(count)

        def call() -> None:
            for ids_B1 in ids_BT.split(1, 1):
                self._read(ids_B1)

        return call

    def trace(self, steps: int) -> Trace:
        """Go on by random tokens under the profiler."""
        return record(self.steps(steps), self.where)

    def _read(self, ids_B1: torch.Tensor) -> None:
        if self.graph is None:
            self.state = self.model(ids_B1, self.state).state
        else:
            self.graph.step(ids_B1)

    def _tokens(self, length: int) -> torch.Tensor:
        return _tokens(self.model, self.random, self.batch, length, self.where)


def _states(
    model: Any, contexts: list[int], random: torch.Generator, o: argparse.Namespace, where: str
) -> Iterator[tuple[int, Any]]:
    """The state after each context, all on the way to the longest."""
    state, seen = None, 0
    for context in contexts:
        while seen < context:
            length = min(o.chunk, context - seen)
            state = model(_tokens(model, random, o.batch, length, where), state).state
            seen += length
        # Going on may write into the state: each context gets a copy of its own.
        yield context, copy.deepcopy(state)


def _tokens(
    model: Any, random: torch.Generator, batch: int, length: int, where: str
) -> torch.Tensor:
    return torch.randint(model.spec["vocab"], (batch, length), generator=random).to(where)


def _wait(where: str) -> None:
    if where == "cuda":
        torch.cuda.synchronize()


def _measured(run: Sequence, profile: bool) -> dict[str, Any]:
    """Time of a step (ms), bytes of the state, and growth of memory over `TRACED` steps."""
    quartiles = torch.tensor(run.seconds, dtype=torch.float64).quantile(QUARTILES)
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors(run.state)]
    run.trace(1)  # the first trace also has what is allocated once and kept
    trace = run.trace(TRACED)
    found = {
        "context": run.context,
        "ms_per_token": statistics.median(run.seconds) * 1e3,
        "ms_quartiles": [1e3 * float(second) for second in quartiles],
        "ms_mean": statistics.fmean(run.seconds) * 1e3,
        "state_bytes": sum(sizes),
        "largest_state_tensor_bytes": max(sizes),
        "traced_steps": TRACED,
        "peak_growth_bytes": trace.peak,
        "net_growth_bytes": trace.net,
    }
    if profile:
        whole = [touch for touch in trace.touches if touch.bytes >= max(sizes)]
        found["whole_cache_operators"] = sum(touch.times for touch in whole)
        found["largest_operators"] = [dataclasses.asdict(t) for t in trace.touches[:SHOWN]]
        found["kernels"] = [dataclasses.asdict(k) for k in kernels(run.steps(TRACED))]
    return found


def table(found: dict[str, Any]) -> str:
    """The measurement as text."""
    o = found["options"]
    form = " as CUDA graphs" if o["graph"] else ""
    lines = [
        f"decode: {o['variant']} at {o['size']}, batch {o['batch']}, "
        f"{o['dtype']} on {o['device']}{form}, median of {o['repeats']} steps [quartiles]",
        f"{'context':>9}  {'ms a token':>22}  {'mean':>8}  "
        f"{'state KiB':>11}  {'peak KiB':>9}  {'net KiB':>9}",
    ]
    for at in found["contexts"]:
        low, high = at["ms_quartiles"]
        took = f"{at['ms_per_token']:.3f} [{low:.3f}, {high:.3f}]"
        sizes = [at[k] / 1024 for k in ("state_bytes", "peak_growth_bytes", "net_growth_bytes")]
        lines.append(
            f"{at['context']:>9,}  {took:>22}  {at['ms_mean']:>8.3f}  "
            f"{sizes[0]:>11,.1f}  {sizes[1]:>9,.1f}  {sizes[2]:>9,.1f}"
        )
    lines.append(f"time at the longest context over that at the shortest: {found['ratio']:.3f}")
    lines.append(f"peak, net: growth of memory in {TRACED} steps, at its peak and at their end")
    for at in found["contexts"] if o["profile"] else []:
        largest = at["largest_state_tensor_bytes"]
        lines.append(
            f"context {at['context']:,}: operators in {TRACED} steps that allocate or copy as much "
            f"as the largest tensor of the state ({largest:,} bytes): {at['whole_cache_operators']}"
        )
        lines += [
            f"  {touch['bytes']:>12,} bytes ({touch['bytes'] / largest:.1%}), "
            f"{touch['times']} times: {touch['name']}"
            for touch in at["largest_operators"]
        ]
        lines += _kernel_lines(at["kernels"])
    return "\n".join(lines)


def _kernel_lines(found: list[dict[str, Any]]) -> list[str]:
    """Launches and time of one step on the GPU, and the kernels that take longest."""
    if not found:
        return []
    launches, took = (sum(k[name] for k in found) / TRACED for name in ("launches", "microseconds"))
    lines = [f"  kernels of a step: {launches:.1f} launches, {took:.1f} us of the device's time"]
    return lines + [
        f"  {k['microseconds'] / TRACED:>9.2f} us, {k['launches'] / TRACED:>6.1f} launches: "
        f"{k['name'][:100]}"
        for k in found[:KERNELS]
    ]
