"""Runs lm-eval's evaluator over local JSON-lines files, with our task templates or its own."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

TEMPLATES = Path(__file__).parent / "tasks"


@dataclass(frozen=True)
class LocalTask:
    """One lm-eval task: a template, a JSON-lines file, and changed task keys.

    The template is a name in `tasks/`, or with a slash a file in lm-eval's own tree of tasks.
    """

    name: str
    template: str
    file: Path
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskResult:
    """lm-eval's aggregated metrics by their plain names, and its per-sample log."""

    metrics: dict[str, Any]
    samples: list[dict[str, Any]]


def run_tasks(
    model: nn.Module,
    data_dir: Path,
    tasks: Sequence[LocalTask],
    *,
    limit: int | None,
    max_length: int,
    batch_size: int,
    device: str,
) -> dict[str, TaskResult]:
    """Run lm-eval over `tasks`, at most `limit` documents each; results by task name.

    `data_dir` holds the tokenizer; the rest is as in `HarnessModel`. Nothing is looked up on a
    network: the documents are local and the libraries run offline.
    """
    # Read by the libraries when they are first imported, hence before the imports below.
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    import datasets
    import lm_eval
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    from forgetmenot.evaluate.harness import HarnessModel

    datasets.disable_progress_bars()
    harness = HarnessModel(
        model, data_dir, max_length=max_length, batch_size=batch_size, device=device
    )
    trees = {False: TEMPLATES, True: Path(lm_eval.__file__).parent / "tasks"}
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            resolved = {
                "include": str(trees["/" in task.template] / f"{task.template}.yaml"),
                "task": task.name,
                "dataset_kwargs": {
                    "data_files": {"test": str(task.file.resolve())},
                    "cache_dir": f"{folder}/cache",
                },
                **task.changes,
            }
            Path(folder, f"{task.name}.yaml").write_text(yaml.safe_dump(resolved))
        manager = TaskManager(include_path=folder, include_defaults=False)
        loaded = manager.load([task.name for task in tasks])
        # Standard errors are ours: lm-eval's bootstrap would start a process a core.
        found: Any = evaluate(harness, loaded, limit=limit, log_samples=True, bootstrap_iters=0)
    return {
        task.name: TaskResult(
            _plain_names(found["results"][task.name]), found["samples"][task.name]
        )
        for task in tasks
    }


def _plain_names(metrics: dict[str, Any]) -> dict[str, Any]:
    """lm-eval names a metric "<metric>,<filter>"; our tasks have no filter, so drop ",none"."""
    return {name.removesuffix(",none"): value for name, value in metrics.items()}
