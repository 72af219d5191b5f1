"""The models that a benchmark compares, by name, and how it treats them."""

import argparse
import gc
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from forgetmenot import model as models
from forgetmenot.errors import UserError

BASELINE = "transformer"  # ratios are over this model's speed in the same run
POSITIONS = 128  # of a sequence, evenly spaced, over which FLOPs are averaged


def add_arguments(parser: argparse.ArgumentParser, size: str) -> None:
    """Add the options that choose models; `size` is the default of --size."""
    parser.add_argument("--models", nargs="+", help="files in models/; without it: the paper's")
    parser.add_argument("--size", default=size, help="file in sizes/, 0.4B or 1.4B")
    parser.add_argument("--vocab", type=int, default=32_000, help="tokens of the vocabulary")
    parser.add_argument(
        "--specs",
        type=Path,
        help="JSON of models' specs by name, instead of the configuration and what reads it",
    )
    parser.add_argument(
        "--save-specs", type=Path, help="write the models' specs there for --specs; measure nothing"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def counts(o: argparse.Namespace, *names: str) -> None:
    """Raise UserError unless these options (numbers or lists of them) are 1 or more."""
    for name in names:
        value = getattr(o, name)
        least = min(value) if isinstance(value, list) else value
        if least < 1:
            raise UserError(f"{name.replace('_', '-')}: found {least}; allowed: 1 or more")


def specs(o: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The models' specs by name. Raises UserError for unknown names and unreadable files."""
    counts(o, "vocab")
    if o.specs is not None:
        return _read(o)
    # here, since the configuration needs packages that a machine which only measures may lack
    from forgetmenot import variants

    entries = variants.library()
    names = o.models or variants.paper_variants(o.size, entries)
    found = {name: variants.spec(name, o.size, o.vocab, entries) for name in names}
    if o.save_specs is not None:
        from forgetmenot.files import write_json

        write_json(o.save_specs, found)
    return found


def _read(o: argparse.Namespace) -> dict[str, dict[str, Any]]:
    if o.save_specs is not None:
        raise UserError("save-specs: found beside specs; allowed: one of the two")
    try:
        found = json.loads(o.specs.read_text(encoding="utf-8"))
        found = {name: {**spec, "layers": list(spec["layers"])} for name, spec in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{o.specs}: not readable specs of models ({error!r})") from error
    unknown = [name for name in o.models or () if name not in found]
    if unknown:
        raise UserError(f"models: found {unknown[0]!r}; allowed: {', '.join(found)}")
    return {name: {**found[name], "vocab": o.vocab} for name in o.models or found}


def build(spec: dict[str, Any], where: str) -> Any:
    """A freshly initialised model on a device."""
    with torch.device(where):
        model = models.build(spec)
    model.init_parameters(0)
    return model


def flops_per_token(model: Any, length: int) -> float:
    """Forward FLOPs (`Mixer.flops`) of a token, averaged over a sequence of this length."""
    step = max(1, length // POSITIONS)
    return statistics.fmean(model.base.flops(n) for n in range(step // 2, length, step))


@contextmanager
def memory(row: dict[str, Any], where: str) -> Iterator[None]:
    """Note in `row` the device's peak (bytes, None off a GPU), or as `error` that it was too much.

    Whatever the model held is given back after, so that the next one starts from nothing.
    """
    on_gpu = where == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        yield
    except torch.OutOfMemoryError as error:  # the others' numbers are still worth it
        row["error"] = f"out of memory: {str(error).partition(chr(10))[0]}"
    row["peak_bytes"] = torch.cuda.max_memory_allocated() if on_gpu else None


def free(where: str) -> None:
    """Give back what is no longer used."""
    gc.collect()
    if where == "cuda":
        torch.cuda.empty_cache()


def quartiles(values: list[float]) -> list[float]:
    """Median, lower and upper quartile."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return [middle, low, high]


def gib(count: int | None) -> str:
    """Bytes as GiB; - for None."""
    return "-" if count is None else f"{count / 2**30:.1f}"
