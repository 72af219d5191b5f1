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

from forgetmenot_kernels.short_conv import short_conv, short_conv_step

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
on_gpu = not INTERPRETED


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
@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16] + [torch.bfloat16] * on_gpu)
@pytest.mark.parametrize("width", [20, 130] + [3072] * on_gpu)
@torch.no_grad()
def test_step_is_the_plain_step_in_place(taps: int, dtype: torch.dtype, width: int) -> None:
    x, weight, state = inputs(Case(6, width, taps, dtype, batch=3))
    plain_state, exact_state, address = state.clone(), state.double(), state.data_ptr()
    for x_BD in x.unbind(1):
        exact = short_conv_step(x_BD.double(), weight.double(), exact_state, impl="plain")
        plain = short_conv_step(x_BD, weight, plain_state, impl="plain")
        ours = short_conv_step(x_BD, weight, state, impl="triton")
        rounding = 2 * torch.finfo(torch.float32).eps * exact.norm()
        assert (ours.double() - exact).norm() <= 2 * (plain.double() - exact).norm() + rounding
        assert torch.equal(state, plain_state)
    assert state.data_ptr() == address


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
    with pytest.raises(TypeError, match="found float64; allowed with triton: float32"):
        short_conv_step(x[:, 0], weight, x.new_zeros(2, 3, 20), impl="triton")


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

    @pytest.mark.gpu
    @torch.no_grad()
    def test_a_cuda_graph_holds_steps() -> None:
        x, weight, state = inputs(Case(4, 300))
        expected, _ = short_conv(x, weight, initial_state=state)
        token = x[:, 0].clone()
        short_conv_step(token, weight, state.clone())  # compiled before the capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = short_conv_step(token, weight, state)
        for t, x_BD in enumerate(x.unbind(1)):
            token.copy_(x_BD)
            graph.replay()
            torch.testing.assert_close(y, expected[:, t])
        assert torch.equal(state, x[:, -3:])
