"""How a job looks in MLflow: its name, parameters, tags and metrics.

Live runs and rebuilt runs both come from here, so they cannot differ.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from forgetmenot.files import sha256_json

JOB = "forgetmenot.job"
REQUEST = "forgetmenot.request"
RESULT = "forgetmenot.result"
MAX_PARAMS = 100  # MLflow's limit for one batch; more cannot be read in its page anyway
MAX_TEXT = 500
_IDENTITY = ("stage", "name", "spec", "seed", "code")


def experiment(request: Mapping[str, Any]) -> str:
    """Name of the experiment the job belongs to."""
    return str(request["tracking"]["experiment"])


def params(request: Mapping[str, Any]) -> dict[str, str]:
    """The job's spec as flat parameters: nested keys joined by dots, long texts cut."""
    flat = {"seed": str(request["seed"]), **dict(_flatten(request["spec"], ""))}
    return {key[:250]: _cut(text) for key, text in list(flat.items())[:MAX_PARAMS]}


def tags(request: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a run while it runs: the job, its code and spec, and the workflow's own tags."""
    given = {str(key): _cut(_text(value)) for key, value in request.get("tags", {}).items()}
    return {
        **given,
        "mlflow.runName": str(request["name"]),
        "stage": str(request["stage"]),
        "seed": str(request["seed"]),
        "code": str(request["code"]),
        JOB: str(request["name"]),
        REQUEST: sha256_json({key: request[key] for key in _IDENTITY}),
    }


def result_tags(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The tags that a finished job adds: its result, its inputs' hash, commit and versions."""
    inputs = {name: entry["id"] for name, entry in manifest.get("inputs", {}).items()}
    git = manifest.get("git") or {}
    found = {
        RESULT: manifest["id"],
        "data": sha256_json(inputs) if inputs else "none",
        "git_commit": git.get("commit", "unknown"),
        "git_dirty": git.get("dirty", "unknown"),
        "device": manifest.get("device", "unknown"),
        "platform": manifest.get("platform", "unknown"),
        "versions": manifest.get("versions", {}),
        "folder": manifest["out"],
    }
    return {key: _cut(_text(value)) for key, value in found.items()}


def result_metrics(folder: Path, manifest: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a finished job: wall time, and those of results.json with their axis values."""
    found = {"wall_seconds": float(manifest["wall_seconds"])}
    path = folder / "results.json"
    if path.is_file():
        for entry in json.loads(path.read_text())["metrics"]:
            at = "".join(f"/{key}_{value}" for key, value in entry.get("at", {}).items())
            found |= scalars({f"{entry['metric']}{at}": entry["value"]})
    return found


def artifacts(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files of a finished job to keep with its run, each with the folder it belongs to there.

    The manifest of every job; of a report its page, claims, tables and figures.
    """
    yield folder / "manifest.json", ""
    if (folder / "index.html").is_file():
        yield folder / "index.html", ""
        yield folder / "claims.md", ""
        for kind in ("tables", "figures"):
            for path in sorted(folder.joinpath(kind).glob("*")):
                yield path, kind


def curve(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, metrics) for each line of a folder's training curve, if it has one."""
    path = folder / "curve.jsonl"
    if path.is_file():
        for line in path.read_text().splitlines():
            values = json.loads(line)
            yield int(values["step"]), scalars(values)


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Nested numbers as a flat mapping ("kept/0/1"); `step` and whatever is no number is left out.

    Infinite numbers and NaN are left out too: a store may refuse them.
    """
    found: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{inner}": v for inner, v in scalars(value).items()}
        elif isinstance(value, list | tuple):
            numbered = {str(index): item for index, item in enumerate(value)}
            found |= {f"{key}/{inner}": v for inner, v in scalars(numbered).items()}
        elif isinstance(value, int | float) and key != "step" and math.isfinite(value):
            found[_metric_name(key)] = float(value)
    return found


def _metric_name(key: str) -> str:
    """A name MLflow accepts: letters, digits and _-./: and blanks."""
    return "".join(c if c.isalnum() or c in "_-./: " else "_" for c in key)


def _flatten(value: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
