"""The Triton short convolution against float64: in Triton's interpreter on a CPU (one subprocess,
since the interpreter has to be chosen before the first import of Triton), and on a GPU.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from forgetmenot_kernels.short_conv import short_conv

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


class Case(NamedTuple):
    time: int
    width: int = 20
    taps: int = 4
    dtype: torch.dtype = torch.float32
    documents: tuple[int, ...] = ()  # lengths
    batch: int = 2


SMALL = [
    *(Case(time) for time in (1, 2, 3, 33)),
    Case(40, 130, 3),
    Case(5, taps=1),
    Case(9, taps=2, dtype=torch.float16),
    Case(40, documents=(1, 2, 1, 30, 6)),
]
LARGE = [
    Case(time, width, taps, dtype, documents)
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
    for time, width, taps, documents in [
        *((time, 200, 4, ()) for time in (1, 2, 3, 64, 1025, 4096)),
        (100, 1024, 1, ()),
        (100, 1000, 3, ()),
        (1025, 300, 4, (1, 2, 1, 1000, 20, 1)),
    ]
]
cases = pytest.mark.parametrize("case", SMALL if INTERPRETED else LARGE, ids=str)
on_device = (lambda test: test) if INTERPRETED else pytest.mark.gpu


def inputs(case: Case) -> list[torch.Tensor]:
    """Inputs, weights and initial states."""
    torch.manual_seed(case.time)
    batch = 1 if case.documents else case.batch
    x = torch.randn(batch, case.time, case.width)
    weight = torch.randn(case.width, case.taps)
    state = torch.randn(len(case.documents) or batch, case.taps - 1, case.width)
    return [part.to(case.dtype).to(DEVICE) for part in (x, weight, state)]


def run(args: list[torch.Tensor], case: Case, impl: str) -> list[torch.Tensor]:
    """Outputs and every gradient of a loss that uses output and final state."""
    x, weight, state = leaves = [part.detach().requires_grad_() for part in args]
    borders = None
    if case.documents:
        borders = torch.tensor([0, *itertools.accumulate(case.documents)], device=DEVICE)
    y, final = short_conv(x, weight, initial_state=state, cu_seqlens=borders, impl=impl)
    loss = y.double().sin().sum() + final.double().cos().sum()
    return [y, final, *torch.autograd.grad(loss, leaves)]


@on_device
@cases
def test_error_is_at_most_twice_that_of_plain_pytorch(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = inputs(case)
    exact = run([x.double() for x in args], case, "shifted")
    plain = run(args, case, "shifted")
    for name in ("empty", "empty_like"):
        new = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, new=new, **b: new(*a, **b).fill_(torch.nan))
    ours = run(args, case, "triton")
    for x, y, z in zip(ours, plain, exact, strict=True):
        rounding = 2 * torch.finfo(torch.float32).eps * z.norm()
        assert (x.double() - z).norm() <= 2 * (y.double() - z).norm() + rounding


@on_device
def test_runs_are_equal_to_the_bit() -> None:
    case = Case(70, documents=(1, 69))
    for x, y in zip(*(run(inputs(case), case, "triton") for _ in range(2)), strict=True):
        assert torch.equal(x, y)


@on_device
def test_float64_is_refused() -> None:
    x, weight, _ = (x.double() for x in inputs(Case(2)))
    with pytest.raises(TypeError, match="found float64; allowed with triton: float32"):
        short_conv(x, weight, impl="triton")


if not INTERPRETED:

    def test_in_the_interpreter() -> None:
        command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-x"]
        result = subprocess.run(
            [*command, str(Path(__file__))],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout

    def test_cpu_tensors_are_refused_without_the_interpreter() -> None:
        with pytest.raises(ValueError, match=r"x: found device cpu; allowed with impl 'triton'"):
            short_conv(torch.zeros(1, 2, 3), torch.zeros(3, 4), impl="triton")
