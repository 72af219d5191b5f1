"""The Triton gated delta rule against float64: in Triton's interpreter on a CPU (one subprocess,
since the interpreter has to be chosen before the first import of Triton), and on a GPU.
"""

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton

from forgetmenot_kernels.gated_delta_rule import gated_delta_rule, gated_delta_rule_step

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
NAMES = ("o", "final", "dq", "dk", "dv", "dg", "dbeta", "dstate")


class Case(NamedTuple):
    time: int
    dtype: torch.dtype = torch.float32
    gates: str = "some"  # some (log-decay 0 to -0.1), none (0), strong (0 to -50), mixed (0 or -50)
    K: int = 16
    V: int = 16
    documents: tuple[int, ...] = ()  # lengths
    norm: bool = False
    batch: int = 1
    heads: int = 1


SMALL = [
    *(Case(time) for time in (1, 2, 63, 64, 65)),
    Case(127, gates="none"),
    Case(100, gates="strong"),
    Case(100, gates="mixed"),
    Case(70, torch.float16, norm=True),
    Case(5, batch=2, heads=2, K=24, V=40),
    Case(9, V=130, norm=True),
    Case(66, K=130),
    Case(70, documents=(1, 2, 66, 1), norm=True),
    Case(3, torch.float16, documents=(1, 1, 1), heads=2),
]
LARGE = [
    *(
        Case(time, dtype, gates, documents=documents, norm=True, K=64, V=64, batch=2, heads=3)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        for time, gates, documents in [
            *((time, "some", ()) for time in (1, 2, 63, 64, 65, 127, 100, 4096)),
            *((1025, gates, ()) for gates in ("none", "strong", "mixed")),
            (1025, "some", (1, 1, 700, 64, 257, 1, 1)),
        ]
    ),
    *(
        Case(1025, dtype, K=K, V=V, batch=2, heads=2)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        for K, V in [
            (16, 16), (16, 128), (24, 40), (32, 32), (32, 256), (64, 128), (96, 192), (128, 64),
            (128, 128), (256, 32), (256, 256),
        ]
    ),
]  # fmt: skip
cases = pytest.mark.parametrize("case", SMALL if INTERPRETED else LARGE, ids=str)
on_device = (lambda test: test) if INTERPRETED else pytest.mark.gpu


def inputs(case: Case) -> list[torch.Tensor]:
    """Q, k, v, g, beta and initial states; q, k and v are parts of one tensor."""
    torch.manual_seed(case.time + case.K)
    batch = 1 if case.documents else case.batch
    states = len(case.documents) or batch
    lead = (batch, case.time, case.heads)
    q, k = (torch.randn(*lead, case.K) for _ in range(2))
    if not case.norm:
        q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    parts = [x.flatten(2) for x in (q, k, torch.randn(*lead, case.V))]
    widths = [x.shape[-1] for x in parts]
    parts = torch.cat(parts, -1).to(case.dtype).to(DEVICE).split(widths, -1)
    q, k, v = (x.unflatten(-1, (case.heads, -1)) for x in parts)
    chance = torch.rand(lead)
    g = {
        "some": -0.1 * chance,
        "none": 0 * chance,
        "strong": -50 * chance,
        "mixed": -50.0 * (chance < 0.1),
    }[case.gates]
    beta = torch.rand(lead)
    state = torch.randn(states, case.heads, case.K, case.V)
    return [q, k, v, *(x.to(DEVICE) for x in (g, beta, state))]


def borders(case: Case) -> torch.Tensor | None:
    lengths = case.documents
    return torch.tensor([0, *itertools.accumulate(lengths)], device=DEVICE) if lengths else None


def run(args: list[torch.Tensor], case: Case, impl: str) -> list[torch.Tensor]:
    """Outputs and every gradient of a loss that uses output and final state."""
    *args, state = leaves = [x.detach().requires_grad_() for x in args]
    o, final = gated_delta_rule(
        *args,
        initial_state=state,
        output_final_state=True,
        cu_seqlens=borders(case),
        qk_l2norm=case.norm,
        impl=impl,
    )
    loss = o.double().sin().sum() + (final * final.cos()).sum().double()
    return [o, final, *torch.autograd.grad(loss, leaves)]


def rounded_loop(args: list[torch.Tensor], case: Case) -> list[torch.Tensor]:
    """The definition with its products in the inputs' precision and a float32 state."""
    *args, state = leaves = [x.detach().requires_grad_() for x in args]
    dtype = case.dtype
    q, k, v, g, beta = args
    if case.norm:
        q, k = (x * torch.rsqrt(x.float().square().sum(-1, True) + 1e-6).to(dtype) for x in (q, k))
    outputs, finals = [], []
    for n, length in enumerate(case.documents or (case.time,)):
        start = sum(case.documents[:n])
        memory = state[n : n + 1] if case.documents else state
        for t in range(start, start + length):
            memory = memory * g[:, t, :, None, None].exp()
            read = (k[:, t, :, None] @ memory.to(dtype))[:, :, 0]
            write = beta[:, t, :, None].to(dtype) * (v[:, t] - read)
            memory = memory + k[:, t, :, :, None] * write[:, :, None]
            o = (q[:, t, :, None] @ memory.to(dtype))[:, :, 0] * case.K**-0.5
            outputs.append(o)
        finals.append(memory)
    o, final = torch.stack(outputs, 1), torch.cat(finals)
    loss = o.double().sin().sum() + (final * final.cos()).sum().double()
    return [o, final, *torch.autograd.grad(loss, leaves)]


@on_device
@cases
def test_error_is_at_most_twice_that_of_plain_pytorch(case: Case, monkeypatch) -> None:
    args = inputs(case)
    with monkeypatch.context() as patch:
        poison_new_tensors(patch)
        ours = run(args, case, "triton")
    assert not too_far(args, case, ours)


def too_far(
    args: list[torch.Tensor], case: Case, ours: list[torch.Tensor]
) -> dict[str, list[float]]:
    """Relative errors (ours, that of plain PyTorch) of what is not near enough to float64."""
    exact = run([x.double() for x in args], case, "chunked")
    if case.dtype == torch.float32:
        plain = run(args, case, "recurrent" if case.time < 2000 else "chunked")
    else:
        plain = rounded_loop(args, case)
    number = torch.finfo(case.dtype)
    rounding = max(4 * torch.finfo(torch.float32).eps, number.eps / 4)
    smallest = number.smallest_normal * number.eps  # gradients through exp(-50) lie below float16's
    found = {}
    for name, x, y, z in zip(NAMES, ours, plain, exact, strict=True):
        error, allowed = ((part.double() - z).norm() for part in (x, y))
        if not error <= 2 * allowed + rounding * z.norm() + smallest * z.numel() ** 0.5:
            found[name] = [(e / z.norm()).item() for e in (error, allowed)]
    return found


def poison_new_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("empty", "empty_like"):
        new = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, new=new, **b: new(*a, **b).fill_(torch.nan))


@on_device
def test_runs_are_equal_to_the_bit() -> None:
    case = Case(67, norm=True, documents=(1, 66), K=32 if INTERPRETED else 128)
    for x, y in zip(*(run(inputs(case), case, "triton") for _ in range(2)), strict=True):
        assert torch.equal(x, y)


def first_call() -> None:
    """Of a process: what is compiled, in which threads, and what comes out."""
    threads: dict[tuple[str, str], str] = {}

    def listener(*, src: Any, metadata_group: dict[str, str], cache_hit: bool, **_: Any) -> None:
        assert not cache_hit
        threads[src.name, str(metadata_group)] = threading.current_thread().name

    triton.knobs.compilation.listener = listener
    case = Case(200, torch.bfloat16, documents=(70, 130), norm=True, K=64, V=128, heads=2)
    args = inputs(case)
    first = run(args, case, "triton")
    # the seven, one of them with and without final states, and those of the normalisation
    assert len(threads) == 10, threads
    assert all(thread.startswith("ThreadPoolExecutor") for thread in threads.values()), threads
    assert not too_far(args, case, first)
    for x, y in zip(first, run(args, case, "triton"), strict=True):
        assert torch.equal(x, y)
    assert len(threads) == 10, threads


@on_device
def test_states_are_optional() -> None:
    case = Case(5)
    *args, _ = inputs(case)
    results = []
    for impl in ("triton", "chunked"):
        leaves = [x.detach().requires_grad_() for x in args]
        o, none = gated_delta_rule(*leaves, impl=impl)
        assert none is None
        only_o = torch.autograd.grad(o.sin().sum(), leaves)
        _, final = gated_delta_rule(*leaves, output_final_state=True, impl=impl)
        only_final = torch.autograd.grad(final.sin().sum(), leaves, allow_unused=True)[1:]
        results.append([o, final, *only_o, *only_final])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@on_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16 if INTERPRETED else torch.bfloat16])
def test_step_is_the_plain_step_in_place(dtype: torch.dtype) -> None:
    *args, state = inputs(Case(3, dtype, K=24, V=40, batch=2, heads=2))
    with torch.no_grad():
        for t in range(3):
            now = [x[:, t] for x in args]
            o, next_state = gated_delta_rule_step(*now, state, qk_l2norm=True, impl="plain")
            ours, same = gated_delta_rule_step(*now, state, qk_l2norm=True, impl="triton")
            assert same is state
            torch.testing.assert_close(ours, o, rtol=torch.finfo(dtype).eps, atol=1e-5)
            torch.testing.assert_close(state, next_state)
    with pytest.raises(ValueError, match="found inputs that require a gradient"):
        gated_delta_rule_step(*now, state.requires_grad_(), impl="triton")


@on_device
def test_float64_and_wide_heads_are_refused() -> None:
    *args, _ = inputs(Case(2))
    with pytest.raises(TypeError, match="found float64; allowed with triton: float32"):
        gated_delta_rule(*(x.double() for x in args), impl="triton")
    *args, _ = inputs(Case(2, V=257))
    with pytest.raises(ValueError, match="v: found width 257; allowed with triton: at most 256"):
        gated_delta_rule(*args, impl="triton")


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
        args = [torch.zeros(1, 2, 1, 4)] * 3 + [torch.zeros(1, 2, 1)] * 2
        with pytest.raises(ValueError, match=r"q: found device cpu; allowed with impl 'triton'"):
            gated_delta_rule(*args, impl="triton")

    @pytest.mark.gpu
    def test_first_call_compiles_side_by_side_and_the_second_nothing(tmp_path: Path) -> None:
        code = f"import runpy; runpy.run_path({__file__!r})['first_call']()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
