"""Speed and memory of training steps, model beside model, and their loss curves.

The project's own trainer takes real optimizer steps: autocast, clipping, AdamW and laLTE's
sparsity pressure. Every step is logged, so the host waits once more than in a training job. Models
start from random weights: laLTE then keeps another share of the tokens than once it has learned.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from forgetmenot.benchmark import _models
from forgetmenot.cli.evaluate import device
from forgetmenot.errors import UserError
from forgetmenot.files import write_text
from forgetmenot.train import setup
from forgetmenot.train.loop import Trainer
from forgetmenot.train.mixture import Mixture, Source, Stream
from forgetmenot.train.options import Options

BACKWARD = 3  # FLOPs of forward and backward over those of the forward pass, as is usual
CEILING_REPEATS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    _models.add_arguments(parser, "0.4B")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a sequence")
    parser.add_argument("--tokens-per-step", type=int, default=65536, help="of an optimizer step")
    parser.add_argument("--batch", type=int, help="sequences at once; without it: all of a step")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps, warm-up included")
    parser.add_argument("--warmup", type=int, default=5, help="first steps that are not timed")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--data", type=Path, help="built token folder; without it: random tokens")
    parser.add_argument("--curve", type=Path, help="file for the losses: a line a model and step")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns the options, the card's ceiling (TFLOP/s) and a row for each model.

    Raises UserError for options that do not fit each other and for unknown models.
    """
    o = options
    _models.counts(o, "length", "tokens_per_step", "steps", "warmup")
    train = _train_options(o)
    found = _models.specs(o)
    shown = {name: str(v) if isinstance(v, Path) else v for name, v in vars(o).items()}
    if o.save_specs is not None:
        return {"options": shown, "ceiling_tflops": None, "rows": []}
    where = device(o.device)
    mixture = Mixture([_source(o)], seed=0)
    ceiling = _ceiling() if where == "cuda" else None
    accelerator = setup.accelerator(where, o.precision)
    rows: list[dict[str, Any]] = []
    curve: list[dict[str, Any]] = []
    for name, spec in found.items():
        row: dict[str, Any] = {"model": name}
        with _models.memory(row, where):
            _measure(row, curve, spec, mixture, train, accelerator, o.warmup)
        accelerator.free_memory()  # it holds on to every module that it prepared
        _models.free(where)
        rows.append(row)
        if o.curve is not None:  # after each model, so that a run that is cut short leaves some
            write_text(o.curve, "".join(json.dumps(line) + "\n" for line in curve))
    _compare(rows, ceiling)
    return {"options": {**shown, "device": where}, "ceiling_tflops": ceiling, "rows": rows}


def _train_options(o: argparse.Namespace) -> Options:
    if o.steps <= o.warmup:
        raise UserError(f"steps: found {o.steps}; allowed: more than warmup = {o.warmup}")
    if o.tokens_per_step % o.length:
        found = f"{o.tokens_per_step}; allowed: multiples of length = {o.length}"
        raise UserError(f"tokens-per-step: found {found}")
    sequences = o.tokens_per_step // o.length
    batch = sequences if o.batch is None else o.batch
    if batch < 1 or sequences % batch:
        raise UserError(f"batch: found {batch}; allowed: divisors of a step's {sequences}")
    return Options(
        steps=o.steps,
        tokens_per_step=o.tokens_per_step,
        accumulate=sequences // batch,
        warmup_steps=o.steps // 10,
        precision=o.precision,
        log_every=1,
        checkpoint_every=o.steps,
    )


class _Random:
    """Sequences of tokens that are drawn alike and on their own: nothing to learn."""

    def __init__(self, vocab: int, length: int) -> None:
        self.vocab, self.length = vocab, length

    def batch(self, rng: np.random.Generator, tokens: int) -> dict[str, np.ndarray[Any, Any]]:
        ids_BT = rng.integers(self.vocab, size=(tokens // self.length, self.length + 1))
        return {"input_ids": ids_BT[:, :-1].copy(), "labels": ids_BT[:, 1:].copy()}


def _source(o: argparse.Namespace) -> Source:
    if o.data is None:
        return Source("random", _Random(o.vocab, o.length), 1.0)
    from forgetmenot.data import tokens

    try:
        needed = setup.vocabulary([{"dataset": "data"}], {"data": o.data})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{o.data}: not a built token folder ({error!r})") from error
    if needed > o.vocab:
        raise UserError(f"vocab: found {o.vocab}; allowed: at least {needed}, that of {o.data}")
    stream: Stream = tokens.Stream(o.data, tokens.StreamOptions(length=o.length))
    return Source(o.data.name, stream, 1.0)


def _ceiling() -> float:
    from forgetmenot.benchmark import _kernel_timing

    return _kernel_timing.ceilings(CEILING_REPEATS)["tflops"]


class _Unsaved(Trainer):
    """A trainer without checkpoints: the one after the last step takes longer than the steps."""

    def _save(self) -> None:
        pass


def _measure(
    row: dict[str, Any],
    curve: list[dict[str, Any]],
    spec: dict[str, Any],
    mixture: Mixture,
    train: Options,
    accelerator: Any,
    warmup: int,
) -> None:
    """Train one model and note its numbers in `row` and its losses in `curve`."""
    model = _models.build(spec, accelerator.device.type)
    row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    tokens, length = train.tokens_per_step, mixture.batch(1, 1).arrays["input_ids"].shape[1]
    row["flops_per_token"] = BACKWARD * _models.flops_per_token(model, length)
    ends: list[float] = []
    losses: list[float] = []

    def log(metrics: dict[str, float], step: int) -> None:
        ends.append(time.perf_counter())
        losses.append(metrics["loss"])
        curve.append({"model": row["model"], "step": step, "loss": metrics["loss"]})

    with tempfile.TemporaryDirectory() as folder:
        trainer = _Unsaved(
            model, mixture, train,
            accelerator=accelerator, work=Path(folder), identity="", name=row["model"], log=log,
        )  # fmt: skip
        out = Path(folder) / "out"
        out.mkdir()
        trainer.run(out)
    timed = ends[warmup - 1 :]
    took = [1e3 * (end - start) for start, end in itertools.pairwise(timed)]
    row["ms_per_step"], *row["ms_quartiles"] = _models.quartiles(took)
    row["tokens_per_second"] = 1e3 * tokens / row["ms_per_step"]
    row["first_loss"], row["last_loss"] = losses[0], losses[-1]
    kept = [head for layer in trainer.controller.report().get("kept", []) for head in layer]
    row["kept_tokens"] = statistics.fmean(kept) if kept else None


def _compare(rows: list[dict[str, Any]], ceiling: float | None) -> None:
    """Add each row's model FLOP utilisation and its speed over the baseline's."""
    speeds = {row["model"]: row.get("tokens_per_second") for row in rows}
    baseline = speeds.get(_models.BASELINE)
    for row in rows:
        speed = speeds[row["model"]]
        known = None if speed is None or ceiling is None else speed * row["flops_per_token"]
        row["mfu"] = None if known is None or ceiling is None else known / (1e12 * ceiling)
        row["ratio"] = None if speed is None or baseline is None else speed / baseline


def table(found: dict[str, Any]) -> str:
    """The measurement as text."""
    o, ceiling = found["options"], found["ceiling_tflops"]
    if o["save_specs"] is not None:
        return f"specs: {o['save_specs']}"
    lines = [
        f"train: {o['specs'] or o['size']}, sequences of {o['length']:,}, "
        f"{o['tokens_per_step']:,} tokens a step, {o['batch'] or 'all'} sequences at once, "
        f"{o['precision']} on {o['device']}, {o['data'] or 'random tokens'}, "
        f"medians of {o['steps'] - o['warmup']} steps [quartiles]",
        f"{'model':<14}{'parameters':>14}{'tokens/s':>11}{'ms a step':>26}{'GiB':>7}{'MFU':>7}"
        f"{'ratio':>7}{'loss':>16}{'kept':>7}",
    ]
    for row in found["rows"]:
        if "error" in row:
            lines.append(f"{row['model']:<14}{row['error']}")
            continue
        low, high = row["ms_quartiles"]
        took = f"{row['ms_per_step']:.1f} [{low:.1f}, {high:.1f}]"
        loss = f"{row['first_loss']:.2f} > {row['last_loss']:.2f}"
        kept = "-" if row["kept_tokens"] is None else f"{row['kept_tokens']:.0f}"
        lines.append(
            f"{row['model']:<14}{row['parameters']:>14,}{row['tokens_per_second']:>11,.0f}"
            f"{took:>26}{_models.gib(row['peak_bytes']):>7}{_share(row['mfu']):>7}"
            f"{_share(row['ratio']):>7}{loss:>16}{kept:>7}"
        )
    measured = "no ceiling: not on a GPU" if ceiling is None else f"{ceiling:.0f} TFLOP/s"
    return "\n".join(
        [
            *lines,
            f"MFU: FLOPs of the forward pass (Mixer.flops, mean over the sequence) x {BACKWARD}, "
            f"over a measured dense bfloat16 product ({measured}); laLTE is counted at its budget",
            f"ratio: tokens/s over those of {_models.BASELINE} here",
            "kept: tokens a head, moving average of the sparsity rule, which starts at the length",
        ]
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
