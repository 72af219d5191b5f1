"""What the operators' tests share. They need torch, pytest and `forgetmenot_kernels`, no more."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker where the project's own configuration is not at hand."""
    config.addinivalue_line("markers", "gpu: needs a CUDA device; run with -m gpu")


@pytest.fixture
def passes_in_the_interpreter() -> Callable[[str], None]:
    """Runs a test file in Triton's interpreter: it has to be chosen before Triton is imported."""

    def run(file: str) -> None:
        done = subprocess.run(
            # not the project's options, which may name plugins that are not there
            [*PYTEST, "-o", "addopts=", "--import-mode=importlib", "-x", file],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

    return run


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """What is allocated and not written is NaN or the largest integer."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill
