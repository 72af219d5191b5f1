"""Time and memory of one decoding step after contexts of different lengths.

A model with random weights reads random tokens in chunks, once, and its state is set aside at each
context. Then single tokens follow, the contexts by turns, so that noise of the machine hits all.
"""

import argparse
import copy
import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from forgetmenot import model as models
from forgetmenot import variants
from forgetmenot.benchmark._trace import Trace, record
from forgetmenot.cli.evaluate import device
from forgetmenot.errors import UserError

# Narrow, so that a CPU is quick, but with so large a cache that nothing else in a step is as large.
SMALL = ("recall-4l-d256", 769, 512)
WARMUP = 3
# Some work comes every so many tokens (laLTE scores 32 at once), so one step is not enough.
TRACED = 33
QUARTILES = torch.tensor((0.25, 0.75), dtype=torch.float64)
SHOWN = 5  # operators that a profile lists


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.add_argument("--variant", default="gdn_lte", help="file in models/")
    parser.add_argument(
        "--size",
        help=f"file in sizes/, 0.4B or 1.4B; without one: {SMALL[0]} with the paper's window of "
        f"{SMALL[1]} and budget of {SMALL[2]} tokens",
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
    parser.add_argument("--profile", action="store_true", help="list what a step copies")


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
    spec = _spec(o)
    with torch.device(where):
        model = models.build(spec).to(getattr(torch, o.dtype)).eval()
        model.init_parameters(0)
    contexts = sorted(set(o.contexts))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        runs = [
            Sequence(model, state, context, random, o.batch, where)
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
        "options": {**vars(o), "device": where},
        "contexts": measured,
        "ratio": last["ms_per_token"] / first["ms_per_token"],
    }


def _spec(o: argparse.Namespace) -> dict[str, Any]:
    if o.size is None:
        window, budget = SMALL[1:]
        o.size, o.window, o.budget = SMALL[0], o.window or window, o.budget or budget
    spec = variants.spec(o.variant, o.size, o.vocab, variants.library())
    for _, layer in spec["layers"]:
        for key in ("window", "budget"):
            if layer.get(key) is not None and getattr(o, key) is not None:
                layer[key] = getattr(o, key)
    return spec


class Sequence:
    """A batch of sequences after `context` tokens that goes on one token a step."""

    def __init__(
        self, model: Any, state: Any, context: int, random: torch.Generator, batch: int, where: str
    ) -> None:
        self.model, self.state, self.context = model, state, context
        self.random, self.batch, self.where = random, batch, where
        self.seconds: list[float] = []

    def step(self) -> float:
        """Go on by one random token; returns the seconds it took."""
        ids_B1 = _tokens(self.model, self.random, self.batch, 1, self.where)
        _wait(self.where)
        start = time.perf_counter()
        self.state = self.model(ids_B1, self.state).state
        _wait(self.where)
        return time.perf_counter() - start

    def trace(self, steps: int) -> Trace:
        """Go on by random tokens under the profiler."""
        ids_BT = _tokens(self.model, self.random, self.batch, steps, self.where)

        def call() -> None:
            for ids_B1 in ids_BT.split(1, 1):
                self.state = self.model(ids_B1, self.state).state

        return record(call, self.where)


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
    tensors = list(_tensors(run.state))
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
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
    return found


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, tuple | list):
        for part in state:
            yield from _tensors(part)


def table(found: dict[str, Any]) -> str:
    """The measurement as text."""
    o = found["options"]
    lines = [
        f"decode: {o['variant']} at {o['size']}, batch {o['batch']}, "
        f"{o['dtype']} on {o['device']}, median of {o['repeats']} steps [quartiles]",
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
    return "\n".join(lines)
