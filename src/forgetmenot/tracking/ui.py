"""Starts MLflow's pages on this machine only."""

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.parse import quote

from forgetmenot.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient

HOST = "127.0.0.1"


def free_port() -> int:
    """A port of this machine that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def curves(client: "MlflowClient", address: str) -> list[tuple[str, str]]:
    """Scale and paper, and the page with the learning curves of its models, where there are any."""
    training = "tags.stage = 'train'"
    place = (
        f"{address}/#/experiments/{{}}/runs?compareRunsMode=CHART&searchFilter={quote(training)}"
    )
    return [
        (experiment.name.removeprefix("forgetmenot/"), place.format(experiment.experiment_id))
        for experiment in client.search_experiments(order_by=["name ASC"])
        if client.search_runs([experiment.experiment_id], training, max_results=1)
    ]


def serve(port: int | None) -> int:
    """Run the MLflow server of the project's store until it is stopped; returns its exit status."""
    client = store.connect(None)
    chosen = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(chosen)]
    command += ["--backend-store-uri", store.address(None), "--workers", "1"]
    print(
        f"MLflow on http://{HOST}:{chosen} (ready in about ten seconds; Ctrl-C ends it)", flush=True
    )
    for name, address in curves(client, f"http://{HOST}:{chosen}"):
        print(f"  curves of {name}: {address}", flush=True)
    # Its own process group, so that the workers it starts end with it.
    server = subprocess.Popen(command, start_new_session=True, env=dict(os.environ))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return server.wait()
    except KeyboardInterrupt:
        os.killpg(server.pid, signal.SIGTERM)
        return server.wait()
