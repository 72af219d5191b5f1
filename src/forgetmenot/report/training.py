"""A model of a study as a set of metrics, from its spec, its weights' header and its curve."""

import functools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forgetmenot import manifest as manifest_files
from forgetmenot.report.lines import read_lines

WEIGHTS = "model.safetensors"
# Dense bfloat16 operations a second that the makers' data sheets give, by a part of the name.
PEAK_FLOPS = {"H200": 989.5e12, "H100": 989.5e12, "A100": 312e12}
Value = tuple[str, dict[str, Any], Any]
"""Name, axis values and value of a metric."""


def metrics(
    directory: Path, manifest: Mapping[str, Any], contexts: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """Metrics of the folder of a model's weights, in the long form of results.json.

    parameters (count). If the model was trained here, by its `manifest`: device (a text), steps,
    tokens, seconds, tokens_per_second (median over the curve), mfu (see `_utilisation`), final_loss
    (nats per token, mean of the last tenth of the curve: one batch is too noisy), with learnable
    eviction kept_tokens (mean over layers and heads at the end) and, where the curve has it,
    peak_bytes of memory. With `contexts` (tokens): kind (a text), and state_bytes and
    flops_per_token at axis `context` (see cost.py). Raises OSError for a missing file and
    ValueError for an empty or missing curve.
    """
    found: list[Value] = [("parameters", {}, count_parameters(directory))]
    if manifest.get("stage") == "train":
        found += _curve(directory / "curve.jsonl")
        found.append(("device", {}, str(manifest.get("device", "unknown"))))
        found += _utilisation(directory, manifest, {n: v for n, _, v in found})
    if contexts:
        text = (directory / "config.json").read_text(encoding="utf-8")
        found += _cost(text, tuple(contexts))
    return [
        {"metric": name, "at": at, "value": value, "stderr": None, "n": 1}
        for name, at, value in found
    ]


def _curve(path: Path) -> list[Value]:
    lines = read_lines(path)
    if not lines:
        raise ValueError(f"{path.name} does not exist or is empty")
    last = lines[-1]
    tail = lines[-max(1, len(lines) // 10) :]
    found = {
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds": last["seconds"],
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in lines),
        "final_loss": statistics.fmean(line["loss"] for line in tail),
    }
    if "kept" in last:
        found["kept_tokens"] = statistics.fmean(k for layer in last["kept"] for k in layer)
    if "peak_bytes" in last:
        found["peak_bytes"] = max(line.get("peak_bytes", 0) for line in lines)
    return [(name, {}, value) for name, value in found.items()]


def _utilisation(
    directory: Path, manifest: Mapping[str, Any], measured: Mapping[str, Any]
) -> list[Value]:
    """mfu: share of one GPU's peak that the model's own operations make up.

    Three times the forward pass (the backward pass costs twice as much; what is computed again
    does not count) of a token in the middle of the longest sequence trained on. Left out where the
    device's peak is not known or training was not in bfloat16.
    """
    spec = manifest.get("spec", {})
    device = str(manifest.get("device", ""))
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)
    lengths = [length for part in spec.get("data", []) for length in _lengths(part["options"])]
    if peak is None or spec.get("train", {}).get("precision") != "bf16" or not lengths:
        return []
    context = max(lengths) // 2
    text = (directory / "config.json").read_text(encoding="utf-8")
    forward = next(v for n, _, v in _cost(text, (context,)) if n == "flops_per_token")
    return [("mfu", {}, 3 * forward * measured["tokens_per_second"] / peak)]


def _lengths(options: Mapping[str, Any]) -> list[int]:
    """Sequence lengths that a stream of training data names."""
    found = [options.get("length"), *(options.get("lengths") or options.get("contexts") or [])]
    return [length for length in found if length is not None]


@functools.cache
def _cost(spec: str, contexts: tuple[int, ...]) -> list[Value]:
    # Here, as it takes torch, which no other part of a report needs. Cached: seeds share a spec.
    from forgetmenot import cost

    found = cost.of(json.loads(spec), contexts)
    at_contexts = [
        (name, {"context": context}, value)
        for name in ("state_bytes", "flops_per_token")
        for context, value in getattr(found, name).items()
    ]
    return [("kind", {}, found.kind), *at_contexts]


def count_parameters(directory: Path) -> int:
    """Number of elements in a folder's weights: from their header, or as known of absent ones.

    Raises OSError where there are neither.
    """
    path = directory / WEIGHTS
    known = manifest_files.absent(directory).get(WEIGHTS)
    if known is not None and not path.exists():
        return int(known["parameters"])
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")
