"""Whether an operator's GPU tests have passed in the present state of its code.

A stamp says so: a file with the hash of the operator's code and of its tests, the versions and the
device. It is worth nothing once one of them has changed.
"""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import torch

from forgetmenot import provenance
from forgetmenot.code_hash import CodeHasher
from forgetmenot.errors import UserError
from forgetmenot.files import sha256_file, sha256_json, write_json
from forgetmenot_kernels.registry import Op

WORKERS = 8  # processes of pytest, where its plugin xdist is installed: most of the time compiles


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
    path = stamps / f"{op.folder}.json"
    if not path.is_file():
        return "its GPU tests have not passed here; run with --verify"
    found = json.loads(path.read_text(encoding="utf-8"))
    changed = [key for key, value in state(op).items() if found.get(key) != value]
    if changed:
        return f"changed since its GPU tests passed: {', '.join(changed)}; run with --verify"
    return None


def verify(ops: list[Op], stamps: Path) -> None:
    """Run the operators' GPU tests and stamp those of which all pass, and none is skipped.

    What pytest prints goes to `pytest.log` beside the stamps.
    """
    states = {op.folder: state(op) for op in ops}
    files = {op.folder: files_of(op) for op in ops}
    every = sorted({str(file) for group in files.values() for file in group})
    stamps.mkdir(parents=True, exist_ok=True)
    for folder in states:
        (stamps / f"{folder}.json").unlink(missing_ok=True)
    report = (stamps / "pytest.xml").resolve()
    report.unlink(missing_ok=True)
    parallel = importlib.util.find_spec("xdist") is not None
    workers = ["-n", str(min(WORKERS, os.cpu_count() or 1))] if parallel else []
    with (stamps / "pytest.log").open("w", encoding="utf-8") as log:
        status = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"),
                # not the project's own options: they leave these tests out
                *("-o", "addopts=", "--import-mode=importlib", "-o", "junit_family=xunit1"),
                *(f"--junitxml={report}", *workers, *every),
            ],
            cwd=provenance.CHECKOUT,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    passed, others = _counts(report) if status in (0, 1) else (Counter[str](), Counter[str]())
    for folder, names in files.items():
        good = sum(passed[name.name] for name in names)
        bad = sum(others[name.name] for name in names)
        print(f"verify {folder}: {good} passed, {bad} not", file=sys.stderr)
        if good and not bad:
            write_json(stamps / f"{folder}.json", states[folder])


def _counts(report: Path) -> tuple[Counter[str], Counter[str]]:
    """Tests that passed and that did not (failed, broke, were skipped), by file name."""
    passed, others = Counter[str](), Counter[str]()
    for case in ElementTree.parse(report).iter("testcase"):
        bad = any(case.find(outcome) is not None for outcome in ("failure", "error", "skipped"))
        (others if bad else passed)[Path(case.get("file", "")).name] += 1
    return passed, others
