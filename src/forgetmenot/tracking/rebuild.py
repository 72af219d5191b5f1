"""Restores the store from manifests, curves and results. Running it again changes nothing."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetmenot.tracking import describe, store
from forgetmenot.tracking.writer import End, Entry, Metrics, create

if TYPE_CHECKING:
    from mlflow import MlflowClient

ROOTS = ("data/built", "results", "reports")


def rebuild(scale: str | None, uri: str | None) -> tuple[int, int, list[str]]:
    """Add a run for every finished job that the store does not have yet.

    `scale` restricts results and reports to one scale; built data are shared by all scales.
    Returns (runs added, runs that were there, one line for each manifest that cannot be read).
    """
    client = store.connect(uri)
    known: dict[str, set[str]] = {}
    added, present, unreadable = 0, 0, []
    for path in manifests(scale):
        try:
            manifest = json.loads(path.read_text())
            if not manifest["tracking"]:
                continue
            name = describe.experiment(manifest)
            result = manifest["id"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            unreadable.append(f"{path}: {type(error).__name__}: {error}")
            continue
        experiment = store.experiment_id(client, uri, name)
        if experiment not in known:
            known[experiment] = set(_results(client, experiment))
        if result in known[experiment]:
            present += 1
            continue
        _add(client, experiment, path.parent, manifest)
        known[experiment].add(result)
        added += 1
    return added, present, unreadable


def manifests(scale: str | None) -> list[Path]:
    """Paths of all finished jobs' manifests below the current directory, sorted."""
    roots = [Path(ROOTS[0]), *(Path(root, scale or "") for root in ROOTS[1:])]
    found = (path for root in roots for path in root.rglob("manifest.json"))
    # Folders of unfinished jobs are no results, and published ones are copies.
    return sorted(
        path
        for path in found
        if not path.parent.name.endswith((".partial", ".old"))
        and path.parts[:2] != ("reports", "published")
    )


def _results(client: "MlflowClient", experiment: str) -> Iterator[str]:
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        for run in page:
            if describe.RESULT in run.data.tags:
                yield run.data.tags[describe.RESULT]
        token = page.token
        if not token:
            return


def _add(client: "MlflowClient", experiment: str, folder: Path, manifest: dict[str, Any]) -> None:
    start, end = (
        datetime.fromisoformat(manifest[key]).timestamp() for key in ("started", "finished")
    )
    writer = create(client, experiment, manifest, start)
    entries: list[Entry] = [
        Metrics(values, step, start + values.get("seconds", 0.0))
        for step, values in describe.curve(folder)
    ]
    writer.write([*entries, End("FINISHED", folder, time=end)])
