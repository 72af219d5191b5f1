"""The MLflow store: an SQLite file of the project, or a server whose address the user set."""

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER = Path("mlflow")
DATABASE = FOLDER / "mlflow.db"

# A server that does not answer costs a job seconds, not MLflow's default of many minutes.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def address(uri: str | None) -> str:
    """The configured address, or the SQLite file of the project in the current directory."""
    return uri or f"sqlite:///{DATABASE.resolve()}"


def connect(uri: str | None) -> "MlflowClient":
    """A client of the store; the first one creates the SQLite file and its tables.

    Imports mlflow (seconds), so this belongs in a background thread. Several processes may call it
    at once: they take turns by a lock, as MLflow's own first contact with a new file is not safe.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for chatty in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(chatty).setLevel(logging.WARNING)

    where = address(uri)
    with _turn(uri):
        client = mlflow.MlflowClient(tracking_uri=where, registry_uri=where)
        client.search_experiments(max_results=1)
    return client


def experiment_id(client: "MlflowClient", uri: str | None, name: str) -> str:
    """Id of the experiment, created if it is new.

    In the project's own store its artifacts get an explicit folder; left to itself MLflow would
    put them below the directory of whichever process came first.
    """
    with _turn(uri):
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = None if uri else (FOLDER / "artifacts" / name).resolve().as_uri()
        return str(client.create_experiment(name, artifact_location=location))


def initialise(uri: str | None, experiments: Iterable[str]) -> None:
    """Create the store and the experiments, once, before jobs use it in parallel."""
    client = connect(uri)
    for name in experiments:
        experiment_id(client, uri, name)


@contextmanager
def _turn(uri: str | None) -> Iterator[None]:
    """Hold the project store's lock; a server needs none."""
    if uri:
        yield
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
