"""The Triton WKV of RWKV-4 against float64: in Triton's interpreter on a CPU (one subprocess,
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

from forgetmenot_kernels.wkv4 import WKV4State, wkv4, wkv4_step

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
NAMES = ("wkv", "mean", "mass", "dk", "dv", "ddecay", "dbonus", "da", "db", "dp")


class Case(NamedTuple):
    time: int
    width: int = 20
    dtype: torch.dtype = torch.float32
    decay: float = 1.0  # the largest
    spread: float = 1.0  # of the keys
    documents: tuple[int, ...] = ()  # lengths
    batch: int = 2


SMALL = [
    *(Case(time, batch=1) for time in (1, 2, 64)),
    Case(66, decay=0.0, batch=1),
    Case(3, 65, decay=50.0),
    Case(10, spread=40.0),
    Case(9, dtype=torch.float16),
    Case(69, documents=(1, 2, 65, 1)),
]
LARGE = [
    *(
        Case(time, 200, dtype, decay, spread, documents)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        for time, decay, spread, documents in [
            *((time, 1.0, 1.0, ()) for time in (1, 2, 63, 64, 65, 127, 100, 1025)),
            *((1025, decay, 1.0, ()) for decay in (0.0, 0.01, 50.0)),
            (1025, 1.0, 40.0, ()),
            (1025, 1.0, 1.0, (1, 1, 700, 64, 257, 1, 1)),
        ]
    ),
    *(Case(4096, 200, dtype) for dtype in (torch.float32, torch.bfloat16)),
    *(Case(100, width, torch.bfloat16) for width in (16, 32, 64, 128, 256, 1024)),
]
cases = pytest.mark.parametrize("case", SMALL if INTERPRETED else LARGE, ids=str)
on_device = (lambda test: test) if INTERPRETED else pytest.mark.gpu


def inputs(case: Case) -> list[torch.Tensor]:
    """Keys, values, decays, bonuses and the three parts of the initial states."""
    torch.manual_seed(case.time)
    batch = 1 if case.documents else case.batch
    k, v = (torch.randn(batch, case.time, case.width) for _ in range(2))
    decay, bonus = case.decay * torch.rand(case.width), torch.randn(case.width)
    a, p = torch.randn(2, len(case.documents) or batch, case.width)
    b = torch.rand_like(a) + 0.5
    k, v = (case.spread * k).to(case.dtype), v.to(case.dtype)
    return [x.to(DEVICE) for x in (k, v, decay, bonus, a, b, p)]


def run(args: list[torch.Tensor], case: Case, impl: str) -> list[torch.Tensor]:
    """Outputs, what the final state means, and every gradient of a loss on all of them."""
    leaves = [x.detach().requires_grad_() for x in args]
    borders = None
    if case.documents:
        borders = torch.tensor([0, *itertools.accumulate(case.documents)], device=DEVICE)
    state = WKV4State(*leaves[4:])
    wkv, final = wkv4(*leaves[:4], initial_state=state, cu_seqlens=borders, impl=impl)
    mean, mass = final.a / final.b, final.b.log() + final.p
    loss = wkv.double().sin().sum() + mean.double().cos().sum() + mass.double().sin().sum()
    return [wkv, mean, mass, *torch.autograd.grad(loss, leaves)]


@on_device
@cases
def test_error_is_at_most_twice_that_of_plain_pytorch(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = inputs(case)
    exact = run([x.double() for x in args], case, "scan")
    plain = run(args, case, "recurrent")
    for name in ("empty", "empty_like"):
        new = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, new=new, **b: new(*a, **b).fill_(torch.nan))
    ours = run(args, case, "triton")
    too_far = {}
    for name, x, y, z in zip(NAMES, ours, plain, exact, strict=True):
        error, allowed = ((part.double() - z).norm() for part in (x, y))
        if not error <= 2 * allowed + 4 * torch.finfo(torch.float32).eps * z.norm():
            too_far[name] = [(e / z.norm()).item() for e in (error, allowed)]
    assert not too_far


@on_device
def test_runs_are_equal_to_the_bit() -> None:
    case = Case(11, documents=(1, 10))
    for x, y in zip(*(run(inputs(case), case, "triton") for _ in range(2)), strict=True):
        assert torch.equal(x, y)


@on_device
def test_a_sequence_starts_empty() -> None:
    k, v, decay, bonus, *_ = inputs(Case(9, batch=1))
    borders = torch.tensor([0, 1, 9], device=DEVICE)
    for x, y in zip(
        *(
            (wkv, final.a / final.b, final.b.log() + final.p)
            for impl in ("triton", "scan")
            for wkv, final in [wkv4(k, v, decay, bonus, cu_seqlens=borders, impl=impl)]
        ),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


@on_device
def test_gradients_of_a_part_of_the_results() -> None:
    *leaves, _, _, _ = inputs(Case(5))
    results = []
    for impl in ("triton", "scan"):
        args = [x.detach().requires_grad_() for x in leaves]
        wkv, state = wkv4(*args, impl=impl)
        by_wkv = torch.autograd.grad(wkv.sin().sum(), args, retain_graph=True)
        loss = (state.a / state.b).sin().sum()
        results.append([*by_wkv, *torch.autograd.grad(loss, args[:3])])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


@on_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16 if INTERPRETED else torch.bfloat16])
def test_step_is_the_plain_step_in_place(dtype: torch.dtype) -> None:
    k, v, decay, bonus, *_ = inputs(Case(3, 70, dtype))
    ours = plain = WKV4State.empty(k)
    ours = WKV4State(*(x.clone() for x in ours))
    for t in range(3):
        o, plain = wkv4_step(k[:, t], v[:, t], decay, bonus, plain, impl="plain")
        x, after = wkv4_step(k[:, t], v[:, t], decay, bonus, ours, impl="triton")
        assert all(new is old for new, old in zip(after, ours, strict=True))
        torch.testing.assert_close(x, o, rtol=torch.finfo(dtype).eps, atol=1e-5)
        torch.testing.assert_close(after, plain)
    with pytest.raises(ValueError, match="found inputs that require a gradient"):
        wkv4_step(k[:, 0], v[:, 0], decay.requires_grad_(), bonus, ours, impl="triton")


@on_device
def test_float64_is_refused() -> None:
    args = [x.double() for x in inputs(Case(2))[:4]]
    with pytest.raises(TypeError, match="found float64; allowed with triton: float32"):
        wkv4(*args, impl="triton")


@pytest.mark.gpu
def test_step_runs_in_a_cuda_graph() -> None:
    k, v, decay, bonus, *_ = inputs(Case(3, 70))
    state = WKV4State.empty(k)
    state = WKV4State(*(x.clone() for x in state))
    now = [k[:, 0].clone(), v[:, 0].clone()]
    wkv4_step(*now, decay, bonus, WKV4State(*(x.clone() for x in state)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o, _ = wkv4_step(*now, decay, bonus, state)
    for x, empty in zip(state, WKV4State.empty(k), strict=True):
        x.copy_(empty)
    plain = WKV4State.empty(k)
    for t in range(3):
        now[0].copy_(k[:, t])
        now[1].copy_(v[:, t])
        graph.replay()
        exact, plain = wkv4_step(k[:, t], v[:, t], decay, bonus, plain, impl="plain")
        torch.testing.assert_close(o, exact)


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
        x, d = torch.zeros(1, 2, 3), torch.zeros(3)
        with pytest.raises(ValueError, match=r"k: found device cpu; allowed with impl 'triton'"):
            wkv4(x, x, d, d, impl="triton")
