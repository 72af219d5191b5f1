"""Time and memory of prefill and decoding, over context length and batch, on this machine.

The model reads held-out text from an empty state (prefill), then goes on by single tokens, the
contexts by turns, so that noise of the machine hits all. What is reported are medians.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from forgetmenot import model as models
from forgetmenot.data.tokenizer_folder import read_tokenizer_meta
from forgetmenot.data.tokens import open_shards
from forgetmenot.decode_graph import DecodeGraph, tensors
from forgetmenot.errors import UserError
from forgetmenot.evaluate.results import Metric, Sample, metric, require_vocabulary, write_results
from forgetmenot.provenance import device_name, versions

WARMUP = 2  # untimed repeats: kernels are compiled and chosen in the first ones
DRAWS = 1000  # resamples for the error of a median
NORMAL_QUANTILE = 1.959963984540054  # two-sided 95 %


@dataclass(frozen=True)
class Options:
    """What to time. All contexts of a batch size are in memory at once."""

    contexts: list[int]  # tokens read before the timed step
    batches: list[int] = field(default_factory=lambda: [1])  # sequences at once
    prefills: int = 5  # timed prefills of each context and batch
    blocks: int = 20  # timed blocks of decoding steps, each of `steps` steps
    steps: int = 32  # decoding steps in a block; some work comes only every so many tokens
    chunk: int = 2048  # tokens of a prompt read in one pass
    dtype: Literal["float32", "bfloat16"] = "float32"  # of weights and activations
    graph: bool = False  # steps as CUDA graphs: refused off a GPU, and for states that grow

    def __post_init__(self) -> None:
        for name in ("contexts", "batches", "prefills", "blocks", "steps", "chunk"):
            value = getattr(self, name)
            least = min(value, default=0) if isinstance(value, list) else value
            if least < 1:
                raise ValueError(f"{name}: found {value}, allowed: 1 or more")


def evaluate(model_dir: Path, data_dir: Path, options: Options, out: Path, device: str) -> None:
    """Write results.json and samples.jsonl (every single timing, as "ms").

    Metrics at {"context", "batch"}: prefill_ms, prefill_tokens_per_second, decode_ms (of one step,
    all sequences of the batch), decode_tokens_per_second, state_bytes (of one sequence, measured),
    and on a GPU peak_bytes of prefill and decoding together, weights included. At {"batch"}:
    device, versions and dtype as texts, and with `graph` also decoding. `data_dir` is a built token
    folder.
    """
    model = models.load(model_dir).to(device, getattr(torch, options.dtype))
    require_vocabulary(model, read_tokenizer_meta(data_dir)["vocab_size"], data_dir)
    metrics, samples = measure(model, data_dir, options, device)
    write_results(out, "efficiency", metrics, samples)


@torch.inference_mode()
def measure(
    model: Any, data_dir: Path, options: Options, device: str
) -> tuple[list[Metric], list[Sample]]:
    """Every number with the standard error of its median, and every timing.

    Raises UserError when steps are asked for as CUDA graphs where that cannot be.
    """
    if options.graph and not device.startswith("cuda"):
        raise UserError(f"graph: found true on {device}; allowed: on cuda only")
    metrics: list[Metric] = []
    samples: list[Sample] = []
    for batch in sorted(set(options.batches)):
        rows = [
            _Row(model, data_dir, context, batch, options, device)
            for context in sorted(set(options.contexts))
        ]
        for number in range(WARMUP + options.blocks):
            for row in rows:
                row.decode(timed=number >= WARMUP)
        for row in rows:
            metrics += row.metrics()
            samples += row.samples()
        metrics += _texts(batch, options)
        del rows
    return metrics, samples


def _texts(batch: int, options: Options) -> list[Metric]:
    """What the numbers of a row hold for: they are this machine's."""
    found = {
        "device": device_name(),
        "versions": ", ".join(f"{k} {v}" for k, v in versions().items() if k in _SHOWN),
        "dtype": options.dtype,
    }
    if options.graph:
        found["decoding"] = "CUDA graphs"
    at = {"batch": batch}
    return [{"metric": k, "at": at, "value": v, "stderr": None, "n": 1} for k, v in found.items()]


_SHOWN = ("python", "torch", "triton")


class _Row:
    """One context and batch size: its prefills, then its decoding, which goes on where it was."""

    def __init__(
        self, model: Any, data_dir: Path, context: int, batch: int, options: Options, device: str
    ) -> None:
        self.model, self.options, self.device = model, options, device
        self.context, self.batch = context, batch
        later = (WARMUP + options.blocks) * options.steps
        tokens_BT = torch.from_numpy(held_out(data_dir, batch, context + later)).to(device)
        prompt_BT, self.following_BT = tokens_BT[:, :context], tokens_BT[:, context:]
        self.prefill_seconds: list[float] = []
        self.decode_seconds: list[float] = []
        self.state: Any = None
        self.peak = 0
        self.place = 0
        for number in range(WARMUP + options.prefills):
            self.state = None
            self.state, seconds = self._timed(lambda: self._read(prompt_BT))
            if number >= WARMUP:
                self.prefill_seconds.append(seconds)
        # Going on may write into the state; what it holds after the prompt is counted now.
        self.state_bytes = _bytes(tensors(self.state)) // batch
        self.graph = None
        if options.graph:
            try:
                self.graph = DecodeGraph(model, self.state, self.following_BT[:, :1])
            except ValueError as error:
                raise UserError(f"graph: {error}") from None

    def decode(self, timed: bool) -> None:
        """Go on by one block of steps."""
        block_BT = self.following_BT[:, self.place : self.place + self.options.steps]
        self.place += self.options.steps
        self.state, seconds = self._timed(lambda: self._step(block_BT))
        if timed:
            self.decode_seconds.append(seconds / self.options.steps)

    def metrics(self) -> list[Metric]:
        """The row's numbers in long form."""
        at = {"context": self.context, "batch": self.batch}
        prefill, prefill_error = median([1e3 * s for s in self.prefill_seconds])
        decode, decode_error = median([1e3 * s for s in self.decode_seconds])
        found = [
            metric("prefill_ms", at, prefill, prefill_error, len(self.prefill_seconds)),
            metric("decode_ms", at, decode, decode_error, len(self.decode_seconds)),
        ]
        for name, ms, error, tokens in (
            ("prefill_tokens_per_second", prefill, prefill_error, self.batch * self.context),
            ("decode_tokens_per_second", decode, decode_error, self.batch),
        ):
            rate = 1e3 * tokens / ms
            spread = None if error is None else rate * error / ms
            found.append(metric(name, at, rate, spread, 1))
        found.append(metric("state_bytes", at, self.state_bytes, None, 1))
        if self.peak:
            found.append(metric("peak_bytes", at, self.peak, None, 1))
        return found

    def samples(self) -> Iterator[Sample]:
        """Every timing: of a whole prefill, and of a decoding step as the mean of its block."""
        for kind, seconds in (("prefill", self.prefill_seconds), ("decode", self.decode_seconds)):
            for number, second in enumerate(seconds):
                at = {"context": self.context, "batch": self.batch, "kind": kind}
                yield {"id": number, "at": at, "ms": 1e3 * second}

    def _read(self, prompt_BT: torch.Tensor) -> Any:
        state = None
        for start in range(0, prompt_BT.shape[1], self.options.chunk):
            part_BT = prompt_BT[:, start : start + self.options.chunk]
            state = self.model(part_BT, state).state
        return state

    def _step(self, block_BT: torch.Tensor) -> Any:
        state = self.state
        for ids_B1 in block_BT.split(1, 1):
            if self.graph is None:
                state = self.model(ids_B1, state).state
            else:
                self.graph.step(ids_B1)
        return state

    def _timed(self, call: Callable[[], Any]) -> tuple[Any, float]:
        """The call's result and seconds; notes the memory that it needs with weights and state.

        The states of the other contexts are in memory too, so growth is what is measured.
        """
        on_gpu = self.device.startswith("cuda")
        before = 0
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        own = _bytes(self.model.parameters()) + _bytes(tensors(self.state))
        start = time.perf_counter()
        result = call()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        if on_gpu:
            self.peak = max(self.peak, own + torch.cuda.max_memory_allocated() - before)
        return result, seconds


def held_out(data_dir: Path, batch: int, length: int) -> np.ndarray:
    """Held-out tokens [batch, length], int64, each row from another place; repeated if too few."""
    shards = open_shards(data_dir, "heldout")
    if not sum(map(len, shards)):
        raise UserError(f"{data_dir}: found no held-out tokens, needs some to read")
    tokens_N: np.ndarray = np.concatenate(shards).astype(np.int64)
    starts_B1 = np.arange(batch)[:, None] * (len(tokens_N) // batch)
    rows_BL: np.ndarray = tokens_N[(starts_B1 + np.arange(length)) % len(tokens_N)]
    return rows_BL


def median(values: list[float]) -> tuple[float, float | None]:
    """The median and its standard error; None for one value.

    The error is that of a normal distribution with the middle 95 % of the medians of resamples
    (fixed seed): one slow run of many does not widen it, as it does not move the median.
    """
    if len(values) < 2:
        return values[0], None
    drawn = np.random.default_rng(0).choice(values, (DRAWS, len(values)))
    low, high = np.quantile(np.median(drawn, 1), (0.025, 0.975))
    return statistics.median(values), float(high - low) / (2 * NORMAL_QUANTILE)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
