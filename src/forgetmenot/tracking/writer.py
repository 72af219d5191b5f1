"""Writes one job's run into MLflow. Everything here may raise; `run.py` catches it."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetmenot.tracking import describe, store

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 1000  # MLflow's limit of metrics in one batch


@dataclass(frozen=True)
class Metrics:
    """Numbers of one step, as the job gave them; `time` in seconds since 1970."""

    values: Mapping[str, Any]
    step: int
    time: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Artifact:
    """A file to keep with the run."""

    path: Path


@dataclass(frozen=True)
class End:
    """The run's end: status, the output folder if there is one, and what went wrong if not."""

    status: str
    folder: Path | None = None
    message: str = ""
    time: float = field(default_factory=time.time)


Entry = Metrics | Artifact | End


def open_live(request: Mapping[str, Any]) -> "Writer":
    """The run of a job that starts now: the one its killed attempt left running, or a new one.

    Runs that attempts with another request left running (other code, say) are closed as killed.
    """
    uri = request["tracking"].get("uri")
    client = store.connect(uri)
    experiment = store.experiment_id(client, uri, describe.experiment(request))
    tags = describe.tags(request)
    name = tags[describe.JOB].replace("'", "")
    same = None
    for run in client.search_runs(
        [experiment], f"tags.`{describe.JOB}` = '{name}' and attributes.status = 'RUNNING'"
    ):
        if same is None and run.data.tags.get(describe.REQUEST) == tags[describe.REQUEST]:
            same = str(run.info.run_id)
        else:
            client.set_terminated(run.info.run_id, "KILLED")
    return Writer(client, same) if same else create(client, experiment, request, time.time())


def create(
    client: "MlflowClient", experiment: str, request: Mapping[str, Any], start: float
) -> "Writer":
    """A new run that started at `start` (seconds since 1970), with the job's params and tags."""
    from mlflow.entities import Param

    tags = describe.tags(request)
    run = client.create_run(experiment, int(start * 1000), tags, tags["mlflow.runName"])
    params = [Param(key, value) for key, value in describe.params(request).items()]
    client.log_batch(run.info.run_id, params=params)
    return Writer(client, str(run.info.run_id))


class Writer:
    """Writes entries into one run of the store."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.client = client
        self.run_id = run_id

    def write(self, entries: Sequence[Entry]) -> None:
        """Write all metrics in as few calls as possible, then files and the end."""
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, int(entry.time * 1000), entry.step)
            for entry in entries
            if isinstance(entry, Metrics)
            for key, value in describe.scalars(entry.values).items()
        ]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + BATCH])
        for entry in entries:
            if isinstance(entry, Artifact):
                self.client.log_artifact(self.run_id, str(entry.path))
            elif isinstance(entry, End):
                self._end(entry)

    def _end(self, end: End) -> None:
        from mlflow.entities import RunTag

        if end.folder is not None:
            path = end.folder / "manifest.json"
            manifest = json.loads(path.read_text())
            tags = [RunTag(key, value) for key, value in describe.result_tags(manifest).items()]
            self.client.log_batch(self.run_id, tags=tags)
            self.write([Metrics(describe.result_metrics(end.folder, manifest), 0, end.time)])
            for artifact, place in describe.artifacts(end.folder):
                self.client.log_artifact(self.run_id, str(artifact), place or None)
        if end.message:
            self.client.set_tag(self.run_id, "error", end.message[:500])
        self.client.set_terminated(self.run_id, end.status, int(end.time * 1000))
