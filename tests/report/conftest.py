"""Made result folders in the form that training and evaluation write."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forgetmenot.files import write_bytes, write_json, write_text

VARIANTS = {"gdn": "GDN", "gdn_attn": "GDN+Attn", "gdn_lte": "laLTE"}


def manifest(folder: Path, key: str, stage: str) -> None:
    """Write a manifest as the stage runner does."""
    parts = key.split("/")
    write_json(
        folder / "manifest.json",
        {
            "stage": stage,
            "name": f"smoke/{key}",
            "out": str(folder),
            "spec": {"task": parts[-1]},
            "seed": int(parts[2].removeprefix("seed")),
            "code": "c0de" * 16,
            "inputs": {
                **({"mqar": {"id": "d", "path": "data/built/mqar"}} if stage == "train" else {}),
                **({"model": {"id": "m", "path": "x/train"}} if stage == "evaluate" else {}),
            },
            "id": f"id of {key}",
            "git": {"commit": "abcdef0123456789", "dirty": False},
            "versions": {"python": "3.11"},
            "device": "cpu",
            "platform": "Linux x86_64",
            "started": "2026-01-01T10:00:00+00:00",
            "finished": "2026-01-01T10:01:00+00:00",
            "wall_seconds": 60.0,
            "tracking": {"uri": None, "experiment": "forgetmenot/smoke/lte"},
            "tags": {"scale": "smoke", "study": parts[0], "variant": parts[1]},
        },
    )


def spec(variant: str) -> dict[str, Any]:
    """A model spec of the variant: two token mixers of each kind, and one MLP."""
    heads = {"heads": 2, "kv_heads": 2, "head_dim": 4}
    mixers = {
        "gdn": ["gdn", {"heads": 2, "key_dim": 4, "value_dim": 4}],
        "gdn_attn": ["attention", heads],
        "gdn_lte": ["lte", {**heads, "window": 8, "budget": 40}],
    }
    layers = [mixers["gdn"], mixers[variant], mixers["gdn"], mixers[variant]]
    plain = {"norm": "rmsnorm", "norm_eps": 1e-6, "tie_embeddings": True, "init_std": None}
    layers.append(["swiglu", {"width": 16}])
    return {"hidden": 8, "vocab": 10, "layers": layers, "prosg": None, **plain}


def write_weights(folder: Path, key: str, stage: str) -> None:
    """Write weights with 12 parameters, the spec of their variant, and the stage's manifest."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + b"0" * 48
    write_bytes(folder / "model.safetensors", weights)
    write_json(folder / "config.json", spec(key.split("/")[1]))
    manifest(folder, key, stage)


def write_train(folder: Path, key: str, kept: bool = False, steps: int = 100) -> None:
    """Write a training run: loss falls from 3 to 1, 10 tokens a step, 12 parameters."""
    lines = []
    for step in range(1, steps + 1):
        line: dict[str, Any] = {
            "step": step,
            "tokens": 10 * step,
            "seconds": step / 10,
            "loss": 3 - 2 * step / steps,
            "lr": 1e-3,
            "grad_norm": 0.5,
            "tokens_per_second": 100.0,
        }
        if kept:
            line |= {
                "kept": [[60 - step / 4, 30.0], [20.0, 40 - step / 5]],
                "lambda": [[step / 1e4, 0.0], [0.0, step / 1e3]],
            }
        lines.append(json.dumps(line) + "\n")
    write_text(folder / "curve.jsonl", "".join(lines))
    write_weights(folder, key, "train")


def write_task(
    folder: Path, key: str, cells: list[tuple[str, dict[str, Any], list[float]]]
) -> None:
    """Write a task's results: (metric, axis values, score of each sample)."""
    metrics, samples = [], []
    for metric, at, scores in cells:
        mean = sum(scores) / len(scores)
        spread = sum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
        stderr = (spread / len(scores)) ** 0.5
        n = len(scores)
        metrics.append({"metric": metric, "at": at, "value": mean, "stderr": stderr, "n": n})
        place = "-".join(map(str, at.values()))
        samples += [{"id": f"{place}-{i}", "at": at, metric: s} for i, s in enumerate(scores)]
    write_json(folder / "results.json", {"task": key.split("/")[-1], "metrics": metrics})
    write_text(folder / "samples.jsonl", "".join(json.dumps(s) + "\n" for s in samples))
    manifest(folder, key, "evaluate")


def draws(accuracy: float, count: int, seed: str) -> list[float]:
    """Zeros and ones, `accuracy` of them ones, in an order that the seed decides."""
    scores = [float(i < round(accuracy * count)) for i in range(count)]
    random.Random(seed).shuffle(scores)
    return scores


def _study(paper: str, title: str, tasks: list[str], seeds: list[int]) -> dict[str, Any]:
    return {
        "paper": paper,
        "title": title,
        "size": "tiny",
        "tasks": tasks,
        "seeds": seeds,
        "deviations": ["tiny models"],
        "data": [{"dataset": "mqar", "weight": 1.0, "options": {"pairs": [4, 8]}}],
        "train": {"steps": 100, "clip": None},
        "variants": [
            {"name": name, "label": label, "description": f"{label} in a test."}
            for name, label in VARIANTS.items()
        ],
    }


@pytest.fixture
def write_results(tmp_path: Path) -> Callable[..., Any]:
    """Function that writes a recall study below tmp_path and returns the report's request spec."""

    def write(
        accuracy: dict[str, float],
        seeds: tuple[int, ...] = (0, 1),
        count: int = 200,
        fetched: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        root = tmp_path / "results" / "smoke"
        trains, results = {}, {}
        for variant, right in accuracy.items():
            for seed in seeds:
                key = f"recall/{variant}/seed{seed}"
                if variant in fetched:
                    write_weights(root / key / "train", f"{key}/train", "fetch")
                else:
                    write_train(root / key / "train", f"{key}/train", kept=variant == "gdn_lte")
                trains[key] = str(root / key / "train")
                scores = [
                    (
                        "accuracy",
                        {"pairs": pairs},
                        draws(right / (1 + 0.1 * n), count, f"{variant}{seed}"),
                    )
                    for n, pairs in enumerate((4, 8))
                ]
                write_task(root / key / "recall", f"{key}/recall", scores)
                results[f"{key}/recall"] = str(root / key / "recall")
        return {
            "scale": "smoke",
            "description": "tiny models, to prove the pipeline",
            "papers": ["lte"],
            "deviations": ["a stand-in <corpus> & more"],
            "studies": {"recall": _study("lte", "Recall", ["recall"], list(seeds))},
            "tables": [
                {
                    "name": "recall",
                    "title": "Recall by pairs",
                    "paper": "lte",
                    "task": "recall",
                    "columns": [
                        {
                            "metric": "accuracy",
                            "header": "pairs:",
                            "axis": "pairs",
                            "format": ".2f",
                            "factor": 100,
                            "better": "higher",
                        }
                    ],
                }
            ],
            "claims": [],
            "trains": trains,
            "results": results,
        }

    return write
