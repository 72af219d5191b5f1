"""A real process, really killed twice, ends in the bits of one that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = Path(__file__).with_name("killable_job.py")


def _start(folder: Path, *point: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), *point],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def _kill_when_it_hangs(folder: Path, *point: str) -> None:
    marker = folder / "hanging"
    process = _start(folder, *point)
    while not marker.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    marker.unlink()


def _finish(folder: Path) -> str:
    process = _start(folder)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return errors


def _curve(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "out" / "curve.jsonl").read_text().splitlines()]
    times = ("seconds", "tokens_per_second")
    return [{key: line[key] for key in line if key not in times} for line in lines]


def test_two_kills_change_no_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert "resumed" not in _finish(whole)
    # After step 12's line and step 10's checkpoint; then in the middle of writing step 20's.
    _kill_when_it_hangs(killed, "log", "12")
    _kill_when_it_hangs(killed, "save", "20")
    assert "resumed at step 15/30" in _finish(killed)
    for name in ("model.safetensors", "config.json"):
        assert (whole / "out" / name).read_bytes() == (killed / "out" / name).read_bytes()
    assert _curve(whole) == _curve(killed)
    assert [line["step"] for line in _curve(whole)] == [4, 8, 12, 16, 20, 24, 28, 30]
    assert _curve(whole)[-1]["lambda"] != [[0.0, 0.0]]


def test_sigterm_saves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    _finish(whole)
    process = _start(stopped, "asked", "12")
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "stopped at step 12" in errors
    assert "resumed at step 12/30" in _finish(stopped)
    for name in ("model.safetensors", "config.json"):
        assert (whole / "out" / name).read_bytes() == (stopped / "out" / name).read_bytes()
    assert _curve(whole) == _curve(stopped)
