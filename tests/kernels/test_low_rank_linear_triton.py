"""The Triton low-rank linear map against float64: in Triton's interpreter on a CPU (one subprocess,
since the interpreter has to be chosen before Triton is imported), and on a GPU.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from forgetmenot_kernels.low_rank_linear import low_rank_linear, low_rank_update

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
on_device = (lambda test: test) if INTERPRETED else pytest.mark.gpu
NAMES = ("y", "dx", "dweight", "dleft", "dright", "dscale", "dbias")


class Case(NamedTuple):
    time: int
    inputs: int = 40
    outputs: int = 70
    rank: int = 4
    dtype: torch.dtype = torch.float32
    batch: int = 2
    bias: bool = True


SMALL = [
    Case(1),
    Case(2, rank=1, bias=False),
    Case(63, inputs=1, batch=3),
    Case(65, inputs=100, outputs=130, rank=17),
    Case(130, dtype=torch.float16, rank=3, batch=1),
    Case(5, inputs=64, outputs=64, dtype=torch.float16, batch=9),
]
LARGE = [
    *SMALL,
    Case(1025, 333, 77, 8),
    *(
        Case(time, inputs, outputs, rank, dtype, batch, bias)
        for dtype in (torch.float16, torch.bfloat16)
        for time, inputs, outputs, rank, batch, bias in [
            (1, 512, 512, 8, 32, False),
            (127, 100, 1000, 1, 2, True),
            (1025, 256, 768, 16, 3, True),
            (4096, 333, 77, 100, 1, True),
            (65, 1024, 2048, 128, 2, False),
        ]
    ),
]
cases = pytest.mark.parametrize("case", SMALL if INTERPRETED else LARGE, ids=str)


def inputs(case: Case) -> list[torch.Tensor]:
    """X, weight, left, right, scale (float32) and, if wanted, bias."""
    torch.manual_seed(case.time)
    batch, time, width, height, rank, = (
        case.batch, case.time, case.inputs, case.outputs, case.rank,
    )  # fmt: skip
    shapes = [(batch, time, width), (height, width), (batch, height, rank), (batch, width, rank)]
    parts = [torch.randn(shape).to(case.dtype) for shape in shapes]
    parts[1] *= width**-0.5
    parts[3] *= width**-0.5
    parts.append(torch.tensor(0.7))
    if case.bias:
        parts.append(torch.randn(height).to(case.dtype))
    return [part.to(DEVICE) for part in parts]


def run(parts: list[torch.Tensor], impl: str) -> list[torch.Tensor]:
    """The output and every gradient."""
    leaves = [part.detach().requires_grad_() for part in parts]
    x, weight, left, right, scale, *bias = leaves
    y = low_rank_linear(
        x, weight, left, right, scale=scale, bias=bias[0] if bias else None, impl=impl
    )
    return [y.detach(), *torch.autograd.grad(y.double().sin().sum(), leaves)]


@on_device
@cases
@pytest.mark.usefixtures("poisoned_memory")
def test_error_is_at_most_twice_that_of_plain_pytorch(case: Case) -> None:
    parts = inputs(case)
    exact = run([part.double() for part in parts], "merged")
    plain, ours = run(parts, "factored"), run(parts, "triton")
    number = torch.finfo(case.dtype)
    for name, x, y, z in zip(NAMES, ours, plain, exact, strict=False):
        assert x.dtype == y.dtype, name
        error, allowed = ((part.double() - z).norm() for part in (x, y))
        budget = 2 * allowed + max(4 * torch.finfo(torch.float32).eps, number.eps / 4) * z.norm()
        if name == "dscale":  # one number, in which many terms cancel: their roundings remain
            budget += number.eps * terms_of_dscale(parts, exact[0]).norm()
        assert error <= budget, f"{name}: {error} > {budget}"


def terms_of_dscale(parts: list[torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    x, _, left, right = (part.double() for part in parts[:4])
    return y.cos() * low_rank_update(x, left, right)


@on_device
def test_runs_are_equal_to_the_bit() -> None:
    parts = inputs(Case(130, dtype=torch.float16))
    for x, y in zip(run(parts, "triton"), run(parts, "triton"), strict=True):
        assert torch.equal(x, y)


@on_device
def test_factors_may_be_wider_and_gradients_come_back_in_their_dtype() -> None:
    x, weight, left, right, *_ = inputs(Case(9, dtype=torch.float16))
    left, right = left.float().requires_grad_(), right.float().requires_grad_()
    ours = low_rank_linear(x, weight, left, right, scale=0.5, impl="triton")
    plain = low_rank_linear(x, weight, left, right, scale=0.5, impl="factored")
    assert ours.dtype == torch.float16
    torch.testing.assert_close(ours, plain, rtol=5e-3, atol=5e-3)
    for grad in torch.autograd.grad(ours.sum(), [left, right]):
        assert grad.dtype == torch.float32


@on_device
def test_autocast_rounds_as_it_does_for_a_plain_linear_map() -> None:
    x, weight, left, right, _, bias = inputs(Case(9))
    with torch.autocast(DEVICE, torch.float16):
        ours = low_rank_linear(x, weight, left, right, bias=bias, impl="triton")
        plain = low_rank_linear(x, weight, left, right, bias=bias, impl="factored")
    assert ours.dtype == torch.float16
    torch.testing.assert_close(ours.float(), plain.float(), rtol=5e-3, atol=5e-3)


@on_device
def test_what_it_cannot_do_is_refused() -> None:
    x, weight, left, right, *_ = inputs(Case(3))
    doubles = (part.double() for part in (x, weight, left, right))
    with pytest.raises(TypeError, match="x: found float64; allowed with triton: float32"):
        low_rank_linear(*doubles, impl="triton")
    with pytest.raises(TypeError, match=r"weight: found dtype torch.float16; allowed with triton"):
        low_rank_linear(x, weight.half(), left, right, impl="triton")
    left, right = (torch.zeros(*part.shape[:2], 129, device=DEVICE) for part in (left, right))
    with pytest.raises(ValueError, match="left: found rank 129; allowed with triton: at most 128"):
        low_rank_linear(x, weight, left, right, impl="triton")


if not INTERPRETED:

    def test_in_the_interpreter(passes_in_the_interpreter: Callable[[str], None]) -> None:
        passes_in_the_interpreter(__file__)

    def test_cpu_tensors_are_refused_without_the_interpreter() -> None:
        x, factors = torch.zeros(1, 2, 3), torch.zeros(1, 3, 1)
        with pytest.raises(ValueError, match=r"x: found device cpu; allowed with impl 'triton'"):
            low_rank_linear(x, torch.zeros(3, 3), factors, factors, impl="triton")
