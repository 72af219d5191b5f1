"""The operators and their tests need torch, Triton and pytest, and nothing of this project else."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

from forgetmenot_kernels.registry import ROOT

TESTS = Path(__file__).parent
ALLOWED = {"forgetmenot_kernels", "torch", "triton", "pytest"} | set(sys.stdlib_module_names)
SOME = ("test_low_rank_linear.py", "test_low_rank_linear_triton.py", "test_short_conv.py")
# whatever is installed beside them, nothing of the project may be found, nor pytest's plugins
RUN = """
import sys
sys.modules["forgetmenot"] = None
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not gpu", "tests"]))
"""


def test_nothing_else_is_imported() -> None:
    for file in [*ROOT.rglob("*.py"), *TESTS.glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_bytes())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}: relative import"
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] in ALLOWED, f"{file}: imports {name}"


def test_a_copy_passes_its_tests_alone(tmp_path: Path) -> None:
    copy = tmp_path / "kernels" / ROOT.name
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", *SOME):
        shutil.copy(TESTS / name, tmp_path / "tests")
    (tmp_path / "tests" / "test_place.py").write_text(
        "import forgetmenot_kernels\n"
        f"def test(): assert forgetmenot_kernels.__file__.startswith({str(copy)!r})\n"
    )
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    # without the last, torch would look for the project where it is installed
    environment |= {"PYTHONPATH": str(copy.parent), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout
