"""The Triton WKV of RWKV-7 against float64: in Triton's interpreter on a CPU (one subprocess,
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

from forgetmenot_kernels.wkv7 import wkv7, wkv7_step

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
NAMES = ("o", "final", "dr", "dw", "dk", "dv", "da", "db", "dstate")


class Case(NamedTuple):
    time: int
    dtype: torch.dtype = torch.float32
    gates: str = "some"  # log-decay some (0 to -0.61), none (0), strong (0 to -50), mixed (0, -50)
    K: int = 16
    V: int = 16
    documents: tuple[int, ...] = ()  # lengths
    batch: int = 1
    heads: int = 1


SMALL = [
    *(Case(time) for time in (1, 2, 64)),
    Case(65, gates="none"),
    Case(66, gates="mixed"),
    Case(9, gates="strong"),
    Case(9, torch.float16),
    Case(3, K=24, V=40, batch=2, heads=2),
    Case(9, K=66, V=66),
    Case(67, documents=(1, 65, 1)),
]
LARGE = [
    *(
        Case(time, dtype, gates, 64, 64, documents, batch=2, heads=3)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        for time, gates, documents in [
            *((time, "some", ()) for time in (1, 2, 63, 64, 65, 127, 100)),
            *((1025, gates, ()) for gates in ("none", "strong", "mixed")),
            (1025, "some", (1, 1, 700, 64, 257, 1, 1)),
        ]
    ),
    *(
        Case(130, dtype, K=K, V=V, batch=2, heads=3)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        for K, V in [
            (16, 16), (16, 128), (32, 32), (32, 256), (64, 128), (96, 192), (128, 64), (128, 128),
            (256, 32), (256, 256),
        ]
    ),
    *(Case(4096, dtype, K=64, V=64, batch=2, heads=3) for dtype in (torch.float32, torch.bfloat16)),
    Case(100, torch.bfloat16, K=24, V=40, batch=2, heads=3),
]  # fmt: skip
cases = pytest.mark.parametrize("case", SMALL if INTERPRETED else LARGE, ids=str)
on_device = (lambda test: test) if INTERPRETED else pytest.mark.gpu


def inputs(case: Case) -> list[torch.Tensor]:
    """R, w (float32), k, v, a, b as in RWKV-7, and initial states."""
    torch.manual_seed(case.time + case.K)
    batch = 1 if case.documents else case.batch
    lead = (batch, case.time, case.heads)
    r, k, direction = (torch.randn(*lead, case.K) for _ in range(3))
    chance = torch.rand(*lead, case.K)
    w = {
        "some": -0.606531 * chance,
        "none": 0 * chance,
        "strong": -50 * chance,
        "mixed": -50.0 * (chance < 0.1),
    }[case.gates]
    v = torch.randn(*lead, case.V)
    unit = torch.nn.functional.normalize(direction, dim=-1)
    b = unit * torch.rand(*lead, case.K)
    state = torch.randn(len(case.documents) or batch, case.heads, case.V, case.K)
    r, k, v, a, b = (x.to(case.dtype) for x in (r, k, v, -unit, b))
    return [x.to(DEVICE) for x in (r, w, k, v, a, b, state)]


def borders(case: Case) -> torch.Tensor | None:
    lengths = case.documents
    return torch.tensor([0, *itertools.accumulate(lengths)], device=DEVICE) if lengths else None


def results(leaves: list[torch.Tensor], o: torch.Tensor, final: torch.Tensor) -> list[torch.Tensor]:
    """Outputs and every gradient of a loss that uses output and final state."""
    loss = o.double().sin().sum() + (final * final.cos()).sum().double()
    return [o, final, *torch.autograd.grad(loss, leaves)]


def run(args: list[torch.Tensor], case: Case, impl: str) -> list[torch.Tensor]:
    *args, state = leaves = [x.detach().requires_grad_() for x in args]
    return results(
        leaves, *wkv7(*args, initial_state_BHVK=state, cu_seqlens=borders(case), impl=impl)
    )


def rounded_loop(args: list[torch.Tensor], case: Case) -> list[torch.Tensor]:
    """The definition with its products in the inputs' precision and a float32 state."""
    r, w, k, v, a, b, state = leaves = [x.detach().requires_grad_() for x in args]
    outputs, finals, dtype = [], [], case.dtype
    for n, length in enumerate(case.documents or (case.time,)):
        start = sum(case.documents[:n])
        memory = state[n : n + 1] if case.documents else state
        for t in range(start, start + length):
            read = memory.to(dtype) @ a[:, t, :, :, None]
            memory = memory * w[:, t, :, None].exp()
            memory = memory + read * b[:, t, :, None] + v[:, t, :, :, None] * k[:, t, :, None]
            outputs.append((memory.to(dtype) @ r[:, t, :, :, None])[..., 0])
        finals.append(memory)
    return results(leaves, torch.stack(outputs, 1), torch.cat(finals))


@on_device
@cases
def test_error_is_at_most_twice_that_of_plain_pytorch(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = inputs(case)
    exact = run([x.double() for x in args], case, "chunked")
    if case.dtype == torch.float32:
        plain = run(args, case, "recurrent" if case.time < 2000 else "chunked")
    else:
        plain = rounded_loop(args, case)
    for name in ("empty", "empty_like"):
        new = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, new=new, **b: new(*a, **b).fill_(torch.nan))
    ours = run(args, case, "triton")
    number = torch.finfo(case.dtype)
    rounding = max(4 * torch.finfo(torch.float32).eps, number.eps / 4)
    smallest = number.smallest_normal * number.eps
    too_far = {}
    for name, x, y, z in zip(NAMES, ours, plain, exact, strict=True):
        error, allowed = ((part.double() - z).norm() for part in (x, y))
        if not error <= 2 * allowed + rounding * z.norm() + smallest * z.numel() ** 0.5:
            too_far[name] = [(e / z.norm()).item() for e in (error, allowed)]
    assert not too_far


@on_device
def test_runs_are_equal_to_the_bit() -> None:
    case = Case(5) if INTERPRETED else Case(67, documents=(1, 66), K=128)
    for x, y in zip(*(run(inputs(case), case, "triton") for _ in range(2)), strict=True):
        assert torch.equal(x, y)


@on_device
def test_full_decay_forgets_all_before() -> None:
    *args, state = inputs(Case(40))
    args[1][:, 20], args[4][:, 20] = -torch.inf, 0
    whole, final, *gradients = run([*args, state], Case(40), "triton")
    after, last = wkv7(*(x[:, 20:] for x in args), impl="recurrent")
    torch.testing.assert_close(whole[:, 20:], after, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(final, last, rtol=1e-4, atol=1e-5)
    assert all(x.isfinite().all() for x in gradients)


@on_device
def test_states_are_optional() -> None:
    *args, _ = inputs(Case(5))
    both = []
    for impl in ("triton", "chunked"):
        leaves = [x.detach().requires_grad_() for x in args]
        o, none = wkv7(*leaves, output_final_state=False, impl=impl)
        assert none is None
        only_o = torch.autograd.grad(o.sin().sum(), leaves)
        _, final = wkv7(*leaves, impl=impl)
        both.append([o, final, *only_o, *torch.autograd.grad(final.sin().sum(), leaves[1:])])
    for ours, plain in zip(*both, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)


@on_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16 if INTERPRETED else torch.bfloat16])
def test_step_is_the_plain_step_in_place(dtype: torch.dtype) -> None:
    *args, state = inputs(Case(3, dtype, K=24, V=40, batch=2, heads=2))
    for t in range(3):
        now = [x[:, t] for x in args]
        o, after = wkv7_step(*now, state, impl="plain")
        ours, same = wkv7_step(*now, state, impl="triton")
        assert same is state
        torch.testing.assert_close(ours, o, rtol=torch.finfo(dtype).eps, atol=1e-5)
        torch.testing.assert_close(state, after)
    with pytest.raises(ValueError, match="found inputs that require a gradient"):
        wkv7_step(*now, state.requires_grad_(), impl="triton")


@pytest.mark.gpu
def test_step_runs_in_a_cuda_graph() -> None:
    *args, state = inputs(Case(3, torch.bfloat16, K=64, V=64, batch=2, heads=2))
    now, ours, plain = [x[:, 0].clone() for x in args], state.clone(), state.clone()
    wkv7_step(*now, state.clone())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o, _ = wkv7_step(*now, ours)
    ours.copy_(state)
    for t in range(3):
        for x, y in zip(now, args, strict=True):
            x.copy_(y[:, t])
        graph.replay()
        exact, plain = wkv7_step(*now, plain, impl="plain")
        torch.testing.assert_close(o, exact, rtol=2**-7, atol=1e-5)
        torch.testing.assert_close(ours, plain)


@on_device
def test_float64_and_wide_heads_are_refused() -> None:
    *args, _ = inputs(Case(2))
    with pytest.raises(TypeError, match="found float64; allowed with triton: float32"):
        wkv7(*(x.double() for x in args), impl="triton")
    *args, _ = inputs(Case(2, V=257))
    with pytest.raises(ValueError, match="v: found width 257; allowed with triton: at most 256"):
        wkv7(*args, impl="triton")


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
        x = torch.zeros(1, 2, 1, 4)
        with pytest.raises(ValueError, match=r"r: found device cpu; allowed with impl 'triton'"):
            wkv7(x, x, x, x, x, x, impl="triton")
