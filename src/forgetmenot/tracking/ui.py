"""Starts MLflow's pages on this machine only."""

import os
import signal
import socket
import subprocess
import sys

from forgetmenot.tracking import store

HOST = "127.0.0.1"


def free_port() -> int:
    """A port of this machine that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def serve(port: int | None) -> int:
    """Run the MLflow server of the project's store until it is stopped; returns its exit status."""
    store.connect(None)
    chosen = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(chosen)]
    command += ["--backend-store-uri", store.address(None), "--workers", "1"]
    print(
        f"MLflow on http://{HOST}:{chosen} (ready in about ten seconds; Ctrl-C ends it)", flush=True
    )
    # Its own process group, so that the workers it starts end with it.
    server = subprocess.Popen(command, start_new_session=True, env=dict(os.environ))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return server.wait()
    except KeyboardInterrupt:
        os.killpg(server.pid, signal.SIGTERM)
        return server.wait()
