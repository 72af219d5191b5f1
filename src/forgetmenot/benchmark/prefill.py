"""Time and memory of reading a prompt (prefill), model beside model, by context and batch.

Models of random weights read random tokens from an empty state, which is kept; the logits of every
token are computed, as in a call of the model. Contexts come by turns, so that noise of the machine
hits all.
"""

import argparse
import time
from typing import Any

import torch

from forgetmenot.benchmark import _models
from forgetmenot.cli.evaluate import device

WARMUP = 2  # untimed repeats: kernels are compiled and chosen in the first ones


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    _models.add_arguments(parser, "0.4B")
    parser.add_argument("--contexts", nargs="+", type=int, default=[1024, 8192], help="tokens")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="sequences at once")
    parser.add_argument("--chunk", type=int, help="tokens read at once; without it: all")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=10, help="timed prefills of each")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns the options and a row for each model, batch and context.

    Raises UserError for options that are no counts and for unknown models.
    """
    o = options
    _models.counts(o, "contexts", "batch", "repeats", *(["chunk"] if o.chunk is not None else []))
    found = _models.specs(o)
    paths = {name: getattr(o, name) and str(getattr(o, name)) for name in ("specs", "save_specs")}
    shown = {**vars(o), **paths}
    if o.save_specs is not None:
        return {"options": shown, "rows": []}
    where = device(o.device)
    rows: list[dict[str, Any]] = []
    for name, spec in found.items():
        model = _models.build(spec, where).to(getattr(torch, o.dtype)).eval()
        for batch in sorted(set(o.batch)):
            rows += _measured(model, name, batch, o, where)
        del model
        _models.free(where)
    _compare(rows)
    return {"options": {**shown, "device": where}, "rows": rows}


@torch.no_grad()
def _measured(
    model: Any, name: str, batch: int, o: argparse.Namespace, where: str
) -> list[dict[str, Any]]:
    """A row for each context of one model and batch size."""
    random = torch.Generator().manual_seed(0)
    rows = []
    took: dict[int, list[float]] = {}
    for context in sorted(set(o.contexts)):
        row: dict[str, Any] = {"model": name, "batch": batch, "context": context}
        ids_BL = torch.randint(o.vocab, (batch, context), generator=random).to(where)
        with _models.memory(row, where):
            for _ in range(WARMUP):
                _read(model, ids_BL, o.chunk, where)
            took[context] = []
        rows.append(row)
        _models.free(where)
    for _ in range(o.repeats):
        for context, seconds in took.items():
            ids_BL = torch.randint(o.vocab, (batch, context), generator=random).to(where)
            seconds.append(_read(model, ids_BL, o.chunk, where))
    for row in rows:
        if "error" not in row:
            seconds = took[row["context"]]
            row["ms"], *row["ms_quartiles"] = _models.quartiles([1e3 * s for s in seconds])
            row["tokens_per_second"] = 1e3 * batch * row["context"] / row["ms"]
    return rows


def _read(model: Any, ids_BL: torch.Tensor, chunk: int | None, where: str) -> float:
    """Read a prompt from an empty state; returns the seconds it took."""
    _wait(where)
    start = time.perf_counter()
    state = None
    for ids in torch.split(ids_BL, chunk or ids_BL.shape[1], 1):
        state = model(ids, state).state
    _wait(where)
    return time.perf_counter() - start


def _wait(where: str) -> None:
    if where == "cuda":
        torch.cuda.synchronize()


def _compare(rows: list[dict[str, Any]]) -> None:
    """Add each row's speed over the baseline's at the same batch and context."""
    speeds = {
        (row["batch"], row["context"]): row.get("tokens_per_second")
        for row in rows
        if row["model"] == _models.BASELINE
    }
    for row in rows:
        baseline, speed = speeds.get((row["batch"], row["context"])), row.get("tokens_per_second")
        row["ratio"] = speed / baseline if speed and baseline else None


def table(found: dict[str, Any]) -> str:
    """The measurement as text."""
    o = found["options"]
    if o["save_specs"] is not None:
        return f"specs: {o['save_specs']}"
    lines = [
        f"prefill: {o['specs'] or o['size']}, {o['dtype']} on {o['device']}, "
        f"{o['chunk'] or 'all'} tokens at once, medians of {o['repeats']} [quartiles]",
        f"{'model':<14}{'batch':>6}{'context':>9}{'ms':>26}{'tokens/s':>12}{'GiB':>7}{'ratio':>8}",
    ]
    for row in found["rows"]:
        head = f"{row['model']:<14}{row['batch']:>6}{row['context']:>9,}"
        if "error" in row:
            lines.append(f"{head}  {row['error']}")
            continue
        low, high = row["ms_quartiles"]
        took = f"{row['ms']:.2f} [{low:.2f}, {high:.2f}]"
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.1%}"
        lines.append(
            f"{head}{took:>26}{row['tokens_per_second']:>12,.0f}"
            f"{_models.gib(row['peak_bytes']):>7}{ratio:>8}"
        )
    return "\n".join([*lines, f"ratio: tokens/s over those of {_models.BASELINE} here"])
