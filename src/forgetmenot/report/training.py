"""A training run as a set of metrics, read from its curve and its weights' header."""

import json
import math
import statistics
from pathlib import Path
from typing import Any


def metrics(directory: Path) -> list[dict[str, Any]]:
    """Metrics of a train folder, in the long form of results.json.

    parameters (count), steps, tokens, seconds, tokens_per_second (median over the curve),
    final_loss (nats per token, mean of the last tenth of the curve: one batch is too noisy) and,
    with learnable eviction, kept_tokens (mean over layers and heads at the end). Raises OSError for
    a missing file and ValueError for an empty curve.
    """
    lines = [json.loads(line) for line in (directory / "curve.jsonl").read_text().splitlines()]
    if not lines:
        raise ValueError("curve.jsonl is empty")
    last = lines[-1]
    tail = lines[-max(1, len(lines) // 10) :]
    found = {
        "parameters": count_parameters(directory / "model.safetensors"),
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds": last["seconds"],
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in lines),
        "final_loss": statistics.fmean(line["loss"] for line in tail),
    }
    if "kept" in last:
        found["kept_tokens"] = statistics.fmean(k for layer in last["kept"] for k in layer)
    return [
        {"metric": name, "at": {}, "value": value, "stderr": None, "n": 1}
        for name, value in found.items()
    ]


def count_parameters(path: Path) -> int:
    """Number of elements stored in a safetensors file, from its header alone."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")
