"""The run of one job: a buffer that a background thread empties into MLflow every few seconds."""

import queue
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forgetmenot.tracking.writer import Artifact, End, Entry, Metrics, open_live

FLUSH_SECONDS = 5.0
JOIN_SECONDS = 60.0  # a job's end waits at most this long for the store


class Run:
    """Handle of a tracking run. No method raises or waits, except the end, which waits a little."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        """Start the thread that writes the run; a request without `tracking` is not tracked."""
        self._name = str(request.get("name"))
        self._entries: queue.SimpleQueue[Entry] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._copies: Path | None = None
        if request.get("tracking"):
            arguments = (dict(request),)
            self._thread = threading.Thread(target=self._write, args=arguments, daemon=True)
            self._thread.start()

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log numbers at a step; nested mappings and lists become "name/0/1"."""
        if self._thread:
            self._entries.put(Metrics(dict(metrics), step))

    def log_artifact(self, path: Path) -> None:
        """Log a file. It is copied now, so that it may be moved or removed right after."""
        if not self._thread:
            return
        try:
            if self._copies is None:
                self._copies = Path(tempfile.mkdtemp(prefix="forgetmenot-"))
            copied = self._copies / path.name
            shutil.copyfile(path, copied)
        except OSError as error:
            self._warn(f"artifact {path} was not logged: {error}")
            return
        self._entries.put(Artifact(copied))

    def finish(self, folder: Path) -> None:
        """End the run well, with the results and the manifest found in the job's output folder."""
        self._end(End("FINISHED", folder))

    def fail(self, message: str) -> None:
        """End the run as failed, for the reason given."""
        self._end(End("FAILED", message=message))

    def _end(self, end: End) -> None:
        if not self._thread or self._ended.is_set():
            return
        self._entries.put(end)
        self._ended.set()
        self._thread.join(JOIN_SECONDS)
        if self._thread.is_alive():
            self._warn("the store is slow; the run's end was not waited for")
        elif self._copies is not None:
            shutil.rmtree(self._copies, ignore_errors=True)

    def _write(self, request: dict[str, Any]) -> None:
        """The thread: wait, empty the queue, write; after a failure only one warning is left."""
        try:
            # Importing mlflow takes seconds of processor time: let the job start first.
            self._ended.wait(FLUSH_SECONDS)
            writer = open_live(request)
            while not self._ended.is_set():
                writer.write(self._drain())
                self._ended.wait(FLUSH_SECONDS)
            writer.write(self._drain())
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            self._warn(f"{type(error).__name__}: {reason}")

    def _drain(self) -> list[Entry]:
        entries = []
        while not self._entries.empty():
            entries.append(self._entries.get())
        return entries

    def _warn(self, message: str) -> None:
        print(
            f"warning: tracking of {self._name} stopped, the job goes on ({message}); "
            "`python -m forgetmenot.cli.tracking rebuild` restores it from the results",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def run(request: Mapping[str, Any]) -> Iterator[Run]:
    """Open the job's run; leaving by an exception ends it as failed with that reason.

    Without `Run.finish` before the end, the run ends as failed too.
    """
    handle = Run(request)
    try:
        yield handle
    except BaseException as error:
        handle.fail(f"{type(error).__name__}: {error}")
        raise
    handle.fail("the job ended without a result")
