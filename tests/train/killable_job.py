"""Run `cli.train` on a tiny gdn_lte model; hang where the test asks, so that it can be killed.

Usage: killable_job.py <folder> [log <step> | save <step> | asked <step>]
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from forgetmenot.cli.train import main
from forgetmenot.data import mqar

GDN = ["gdn", {"heads": 1, "key_dim": 8, "value_dim": 8}]
LTE = [
    "lte",
    {
        "heads": 2,
        "kv_heads": 2,
        "head_dim": 8,
        "window": 6,
        "sink": 2,
        "budget": 8,
        "kernels": [3],
        "dilations": [1],
        "dropout": 0.1,
    },
]
FFN = ["swiglu", {"width": 16}]
SPEC: dict[str, Any] = {
    "model": {
        "hidden": 16,
        "vocab": None,
        "layers": [GDN, FFN, LTE, FFN],
        "tie_embeddings": True,
        "init_std": None,
        "norm_eps": 1e-6,
        "prosg": None,
    },
    "train": {
        "steps": 30,
        "tokens_per_step": 96,
        "learning_rate": 3e-3,
        "warmup_steps": 3,
        "log_every": 4,
        "checkpoint_every": 5,
        "sparsity_update_every": 4,
        "sparsity_lambda_min": 1e-3,
    },
    "data": [
        {
            "dataset": "mqar",
            "builder": "mqar",
            "weight": 1.0,
            "options": {"pairs": [2, 4], "contexts": [4, 24]},
        }
    ],
    "trainable": "all",
    "device": "cpu",
}


def hang(marker: Path) -> None:
    """Tell the test that the moment has come, and wait to be killed."""
    marker.touch()
    while True:
        time.sleep(1)


def run(folder: Path, point: str, step: int) -> None:
    """Train in `folder`; with `point` "log" or "save", hang at that step's line or checkpoint.

    With "asked", SIGTERM comes at that step's line.
    """
    for name in ("out", "work"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    data = folder / "mqar"
    if not data.exists():
        mqar.build(mqar.Options(pairs=[2], keys=8, values=8, noise=8, samples=1), {}, data)
    replace = os.replace

    def replace_or_hang(source: Any, target: Any) -> None:
        if point == "save" and Path(target).name == f"step-{step}":
            hang(folder / "hanging")
        replace(source, target)

    def log(_metrics: dict[str, float], at: int) -> None:
        if point == "log" and at == step:
            hang(folder / "hanging")
        if point == "asked" and at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    os.replace = replace_or_hang  # type: ignore[assignment]
    job = SimpleNamespace(
        name="tiny",
        spec=SPEC,
        seed=7,
        inputs={"mqar": data},
        out=folder / "out",
        work=folder / "work",
        run=SimpleNamespace(log=log),
        volatile=(),
    )
    main(job)  # type: ignore[arg-type]


if __name__ == "__main__":
    run(Path(sys.argv[1]), *(sys.argv[2:3] or ["never"]), int((sys.argv[3:4] or ["0"])[0]))  # type: ignore[misc]
