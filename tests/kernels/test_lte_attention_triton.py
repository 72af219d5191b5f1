"""The Triton kernels of LTE attention against float64: in Triton's interpreter on a CPU (one
subprocess, since the interpreter has to be chosen before the first import of Triton), and on a GPU.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
gpu = pytest.mark.gpu


class Case(NamedTuple):
    time: int
    window: int | None
    heads: int = 2
    groups: int = 1
    width: int = 16
    kept: str = "some"  # some, all, none, together (all evicted by one query), streaming
    sink: int = 0
    documents: tuple[int, ...] = ()  # lengths
    dtype: torch.dtype = torch.float32
    batch: int = 1
    lse: bool = False


SMALL = [
    Case(1, 5),
    Case(2, 1, groups=2),
    Case(63, 5, width=64, sink=2),
    Case(64, 64, kept="all", dtype=torch.float16),
    Case(65, 1, groups=4, heads=1, kept="all", width=32),
    Case(65, 64, kept="some", dtype=torch.float16, lse=True),
    Case(100, 5, heads=3, groups=2, batch=2, sink=3, kept="streaming", width=24),
    Case(100, 100),
    Case(100, None, width=32),
    Case(100, 64, kept="together", batch=2, lse=True),
    Case(100, 5, kept="none", groups=16, heads=1),
    Case(100, 1, kept="together", dtype=torch.float16),
    Case(100, 5, kept="none", sink=7),
    Case(100, 5, documents=(1, 40, 1, 1, 57), sink=2, groups=2),
    Case(100, 30, documents=(70, 1, 29), kept="all", dtype=torch.float16, lse=True),
    Case(65, 5, documents=(1,) * 65, kept="all"),
    Case(65, None, documents=(1, 32, 32)),
]
LARGE = [
    Case(
        time, window, heads=2 if groups < 4 else 1, groups=min(groups, 8 if time > 2000 else 16),
        width=width, kept=kept, sink=4, batch=2 if time < 2000 else 1, dtype=dtype, lse=True,
    )
    for time, window, kept in [(1025, 100, "streaming"), (1025, 64, "all"), (4096, 768, "some")]
    for width, groups in [(16, 16), (32, 4), (64, 1), (80, 2), (128, 2), (256, 1)]
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
] + [
    Case(4096, 333, documents=(1, 1, 1000, 7, 2000, 1087), dtype=torch.bfloat16, width=64),
    Case(4096, 77, documents=(2049, 1, 2046), kept="all", dtype=torch.bfloat16, width=128),
    Case(4096, None, groups=4, dtype=torch.bfloat16, width=64),
    Case(4096, 1, kept="none", dtype=torch.bfloat16, width=64),
    Case(4096, 512, kept="together", dtype=torch.bfloat16, width=64, groups=8),
]  # fmt: skip


def name(case: Case) -> str:
    return "-".join(str(value) for value in case).replace("torch.", "")


def lengths(case: Case) -> list[int]:
    return list(case.documents or (case.time,))


def visible_until(case: Case) -> torch.Tensor:
    shape = (case.batch, case.time, case.heads)
    forever = torch.full(shape, 2**31 - 1, dtype=torch.int32)
    none = torch.zeros_like(forever)
    if case.kept == "all":
        return forever
    if case.kept == "none":
        return none
    if case.kept == "together":
        return torch.where(torch.rand(shape) < 0.5, case.time * 3 // 4, none)
    kept = torch.rand(shape) < 0.3
    if case.kept == "some":
        return torch.where(kept, forever, none)
    lifetime = torch.randint(1, case.time, shape, dtype=torch.int32)
    return torch.where(kept, torch.arange(case.time).int()[:, None] + lifetime, none)


def visible(case: Case, until_BTH: torch.Tensor) -> torch.Tensor:
    """The mask [B, H, T, T], written from the rule."""
    place = torch.cat([torch.arange(n) for n in lengths(case)])
    document = torch.arange(len(lengths(case))).repeat_interleave(torch.tensor(lengths(case)))
    i, j = place[:, None], place[None, :]
    near = torch.ones(case.time, case.time, dtype=torch.bool)
    if case.window is not None:
        near = (i - j < case.window) | (j < case.sink)
    near = near | (i < until_BTH.transpose(1, 2)[:, :, None, :])
    return near & (j <= i) & (document[:, None] == document[None, :])


def plain(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, groups: int
) -> tuple[torch.Tensor, torch.Tensor]:
    k, v, mask = (x.repeat_interleave(groups, d) for x, d in ((k, 2), (v, 2), (mask, 1)))
    scores = torch.einsum("bigd,bjgd->bgij", q, k) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask, -torch.inf)
    return torch.einsum("bgij,bjgd->bigd", scores.softmax(-1), v), scores.logsumexp(-1)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What is allocated and not written is NaN or the largest integer."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def check(case: Case) -> None:
    """Output, log-sum-exp and gradients within twice plain PyTorch's own error, and repeatable."""
    from forgetmenot_kernels.lte_attention import triton_attention

    torch.manual_seed(case.time + case.width)
    shape = (case.batch, case.time, case.heads * case.groups, case.width)
    q, o_grad = (torch.randn(shape) for _ in range(2))
    k, v = (torch.randn(*shape[:2], case.heads, case.width) for _ in range(2))
    lse_grad = torch.randn(shape[:3])
    q, k, v, o_grad = (x.to(DEVICE, case.dtype) for x in (q, k, v, o_grad))
    until = visible_until(case)
    mask = visible(case, until).to(DEVICE)
    until, lse_grad = until.to(DEVICE), lse_grad.to(DEVICE)

    def run(dtype: torch.dtype, kernel: bool) -> list[torch.Tensor]:
        leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        if kernel:
            borders = torch.tensor([0, *lengths(case)]).cumsum(0).to(DEVICE)
            given = None if case.kept == "none" else until
            o, lse = triton_attention.attention(
                *leaves, given, case.window, case.sink, None,
                borders if case.documents else None, True,
            )  # fmt: skip
        else:
            o, lse = plain(*leaves, mask, case.groups)
            lse = lse.transpose(1, 2)
        outputs, seeds = [o], [o_grad.to(dtype)]
        if case.lse:
            outputs, seeds = [o, lse], [*seeds, lse_grad.to(lse.dtype)]
        grads = torch.autograd.grad(outputs, leaves, seeds)
        return [x.detach() for x in (o, lse, *grads)]

    ours, again = run(case.dtype, True), run(case.dtype, True)
    low, exact = run(case.dtype, False), run(torch.float64, False)
    labels = ("o", "lse", "dq", "dk", "dv")
    for label, x, y, z, e in zip(labels, ours, again, low, exact, strict=True):
        assert torch.equal(x, y), f"{label}: two runs differ"
        allowed = 2 * (z.double() - e).norm() + 1e-6 * (e.norm() + e.numel() ** 0.5)
        assert (x.double() - e).norm() <= allowed, f"{label}: {(x.double() - e).norm()} > {allowed}"
        worst = 2 * (z.double() - e).abs().max() + torch.finfo(case.dtype).eps * e.abs().max()
        assert (x.double() - e).abs().max() <= worst + 4e-6, f"{label}: largest error"


def check_segment_cap(queries: int, budget: int) -> None:
    from forgetmenot_kernels.lte_attention import lte_segment_cap
    from forgetmenot_kernels.lte_attention.streaming_cap import Slots

    window, sink, heads = 9, 2, 3
    random = torch.Generator().manual_seed(queries)
    # all slots are full but one, in no order of time; the scores have ties
    position = torch.stack([torch.randperm(60, generator=random)[:budget] for _ in range(heads)], 1)
    position[0] = -1
    held_score = torch.randn(budget, heads, generator=random).abs().mul(2).round() + 1
    held_score = held_score.masked_fill(position < sink, torch.inf)
    held = Slots(held_score[None].to(DEVICE), position[None].to(DEVICE))
    score = torch.randn(1, window + queries, heads, generator=random).mul(2).round().to(DEVICE)
    place = torch.arange(60, 60 + window + queries, device=DEVICE)[None]
    rule = {"window": window, "sink": sink, "budget": budget}
    expected = lte_segment_cap(score, place, held, **rule, impl="torch")
    found = lte_segment_cap(score, place, held, **rule, impl="triton")
    for one, other in zip(found, expected, strict=True):
        assert (one == other).all()


def check_cap(time: int, heads: int, budget: int | None, ties: bool, documents: bool) -> None:
    from forgetmenot_kernels.lte_attention import triton_cap
    from forgetmenot_kernels.lte_attention.streaming_cap import Slots, streaming_cap

    torch.manual_seed(time)
    window, sink = 5, 2
    score = torch.randn(1 if documents else 2, time, heads)
    if ties:
        score = (score * 1.5).round() / 4
    borders = [0, 1, time // 3, time] if documents else [0, time]
    expected = []
    for first, past in itertools.pairwise(borders):
        part = score[:, first:past]
        position = torch.arange(past - first).expand(len(score), -1)
        held = Slots(part[:, :0], torch.zeros(len(score), 0, heads, dtype=torch.int64))
        expected.append(streaming_cap(part, position, past - first, window, sink, budget, held)[0])
    packed = torch.tensor(borders).to(DEVICE) if documents else None
    ours = triton_cap.streaming_cap(score.to(DEVICE), window, sink, budget, packed)
    assert ours.dtype == torch.int32
    assert torch.equal(ours.cpu(), torch.cat(expected, 1))


if INTERPRETED:

    @pytest.mark.parametrize("case", SMALL, ids=name)
    def test_attention(case: Case) -> None:
        check(case)

    @pytest.mark.parametrize(
        "case", [Case(150, 3, kept="streaming"), Case(140, 3, kept="all", documents=(70, 1, 69))]
    )
    def test_segments_of_queries(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
        from forgetmenot_kernels.lte_attention import triton_compact

        monkeypatch.setattr(triton_compact, "SEGMENT", 64)
        check(case)

    @pytest.mark.parametrize("ties", [False, True])
    @pytest.mark.parametrize("budget", [2, 3, 8, 100, None])
    @pytest.mark.parametrize("documents", [False, True])
    def test_cap(budget: int | None, ties: bool, documents: bool) -> None:
        check_cap(61, 2, budget, ties, documents)

    @pytest.mark.parametrize(("queries", "budget"), [(1, 3), (40, 3), (40, 12)])
    def test_segment_cap(queries: int, budget: int) -> None:
        check_segment_cap(queries, budget)

else:

    def test_in_the_interpreter() -> None:
        command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", __file__]
        environment: dict[str, Any] = dict(os.environ, TRITON_INTERPRET="1")
        folder = Path(__file__).parents[2]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

    @gpu
    @pytest.mark.parametrize("case", SMALL + LARGE, ids=name)
    def test_attention_on_gpu(case: Case) -> None:
        check(case)

    @gpu
    @pytest.mark.parametrize("ties", [False, True])
    @pytest.mark.parametrize("budget", [2, 64, 100, 1024, None])
    @pytest.mark.parametrize("documents", [False, True])
    def test_cap_on_gpu(budget: int | None, ties: bool, documents: bool) -> None:
        check_cap(2500, 3, budget, ties, documents)

    @gpu
    @pytest.mark.parametrize(("queries", "budget"), [(1, 3), (300, 12), (2000, 40)])
    def test_segment_cap_on_gpu(queries: int, budget: int) -> None:
        check_segment_cap(queries, budget)
