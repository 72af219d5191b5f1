"""Whether an operator's GPU tests have passed in the present state of its code.

A stamp says so: a file with the hash of the operator's code and of its tests, the versions and the
device. It is worth nothing once one of them has changed.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import IO

import torch

from forgetmenot import provenance
from forgetmenot.code_hash import CodeHasher
from forgetmenot.errors import UserError
from forgetmenot.files import sha256_file, sha256_json, write_json
from forgetmenot_kernels.registry import Op

WORKERS = 16  # processes of pytest, where its plugin xdist is installed: most of the time compiles


def files_of(op: Op) -> list[Path]:
    """The test files of an operator. Raises UserError when this is no checkout with tests."""
    folder = provenance.CHECKOUT / "tests" / "kernels"
    found = sorted(folder.glob(op.test_pattern))
    if not found:
        raise UserError(f"{folder}: found no {op.test_pattern}; run this in a checkout with tests")
    return found


def state(op: Op) -> dict[str, str]:
    """What a stamp of the operator is for: code, tests, versions and device."""
    package = f"forgetmenot_kernels.{op.folder}"
    modules = [f"{package}.{file.stem}" for file in op.readme.parent.glob("[!_]*.py")]
    tests = [*files_of(op), provenance.CHECKOUT / "tests" / "kernels" / "conftest.py"]
    return {
        "code": CodeHasher().hash(package, *modules),
        "tests": sha256_json({file.name: sha256_file(file) for file in tests if file.exists()}),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton"),
        "device": torch.cuda.get_device_name(),
    }


def missing(op: Op, stamps: Path) -> str | None:
    """Why no figure of the operator may be shown; None when its tests have passed."""
    path = stamps / f"{op.name}.json"
    if not path.is_file():
        return "its GPU tests have not passed here; run with --verify"
    found = json.loads(path.read_text(encoding="utf-8"))
    changed = [key for key, value in state(op).items() if found.get(key) != value]
    if changed:
        return f"changed since its GPU tests passed: {', '.join(changed)}; run with --verify"
    return None


def verify(ops: list[Op], stamps: Path, limit: float | None) -> None:
    """Run the operators' GPU tests and stamp those of which all pass, and none is skipped.

    After `limit` seconds pytest is stopped, and operators whose tests had not all run get no stamp.
    What pytest prints goes to `pytest.log` beside the stamps.
    """
    states = {op.name: state(op) for op in ops}
    files = {op.name: files_of(op) for op in ops}
    every = list(dict.fromkeys(str(file) for group in files.values() for file in group))
    stamps.mkdir(parents=True, exist_ok=True)
    for name in states:
        (stamps / f"{name}.json").unlink(missing_ok=True)
    report = (stamps / "pytest.xml").resolve()
    report.unlink(missing_ok=True)
    parallel = importlib.util.find_spec("xdist") is not None
    workers = ["-n", str(min(WORKERS, os.cpu_count() or 1))] if parallel else []
    with (stamps / "pytest.log").open("w", encoding="utf-8") as log:
        running = _pytest([f"--junitxml={report}", *workers, *every], log)
        listed, _ = _pytest(["--collect-only", "-qq", *every], subprocess.PIPE).communicate()
        try:
            running.wait(limit)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)  # it still writes its report
            running.wait()
    wanted = dict(re.findall(r"^(?:.*/)?(test_\w+\.py): (\d+)$", listed, re.MULTILINE))
    passed, others = _counts(report)
    for name, group in files.items():
        total = sum(int(wanted.get(file.name, 0)) for file in group)
        good = sum(passed[file.name] for file in group)
        bad = sum(others[file.name] for file in group)
        print(f"verify {name}: {good} of {total} passed, {bad} failed", file=sys.stderr)
        if good == total > 0 and not bad:
            write_json(stamps / f"{name}.json", states[name])


def _interruptible() -> None:
    # A shell starts background jobs deaf to SIGINT, and their children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _pytest(arguments: list[str], output: int | IO[str]) -> subprocess.Popen[str]:
    """A run of pytest on GPU tests, started."""
    own = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    # not the project's options: they leave these tests out
    own += ["-o", "addopts=", "--import-mode=importlib", "-o", "junit_family=xunit1"]
    return subprocess.Popen(
        [*own, *arguments],
        cwd=provenance.CHECKOUT,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_interruptible,
    )


def _counts(report: Path) -> tuple[Counter[str], Counter[str]]:
    """Tests that passed and that did not (failed, broke, were skipped), by file name."""
    passed, others = Counter[str](), Counter[str]()
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            outcomes = ("failure", "error", "skipped")
            bad = any(case.find(outcome) is not None for outcome in outcomes)
            (others if bad else passed)[Path(case.get("file", "")).name] += 1
    return passed, others
