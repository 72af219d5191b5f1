"""Progress lines, and curve.jsonl, which a resumed run continues without gaps or duplicates."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from forgetmenot.files import write_text

SECONDS_BETWEEN_LINES = 15.0


class Curve:
    """An append-only JSON-lines file; only lines up to `step` survive opening it again."""

    def __init__(self, path: Path, step: int) -> None:
        lines = path.read_text().splitlines() if path.is_file() else []
        kept = [line for line in lines if 0 < _step(line) <= step]
        write_text(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def append(self, line: dict[str, Any]) -> None:
        """Write one line and hand it to the system, so that a reader sees it at once."""
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Put every line on the disk; called before a checkpoint that counts on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Put every line on the disk and close the file."""
        self.sync()
        self._file.close()


def _step(line: str) -> int:
    """Step of a curve line; 0 for one that a kill cut off."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0


class Progress:
    """One line for every few seconds of training; on a terminal the line is rewritten in place."""

    def __init__(self, steps: int, out: TextIO = sys.stderr, *, name: str = "") -> None:
        """`name` begins every line, as several jobs may write to one terminal."""
        self._steps = steps
        self._name = f"{name}  " if name else ""
        self._out = out
        self._live = out.isatty()
        self._printed = float("-inf")

    def update(self, line: dict[str, Any], seconds_per_step: float) -> None:
        """Show a curve line, if it is the last one or the last line shown is old enough."""
        last = line["step"] == self._steps
        now = time.monotonic()
        if not last and now - self._printed < (0.2 if self._live else SECONDS_BETWEEN_LINES):
            return
        self._printed = now
        left = (self._steps - line["step"]) * seconds_per_step
        text = (
            f"{self._name}step {line['step']}/{self._steps}  loss {line['loss']:.4f}  "
            f"accuracy {line['accuracy']:.3f}  {line['tokens_per_second']:,.0f} tokens/s  "
            f"{left:.0f} s left"
        )
        end = "\n" if last or not self._live else ""
        self._out.write(f"\r{text}\x1b[K{end}" if self._live else f"{text}\n")
        self._out.flush()
