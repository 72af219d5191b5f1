"""The Triton kernels of native sparse attention against float64: in Triton's interpreter on a CPU
(one subprocess, since the interpreter has to be chosen before the first import of Triton), and on a
GPU.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from forgetmenot_kernels.nsa import nsa_attention, nsa_cache, nsa_decode_step

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
gpu = pytest.mark.gpu


class Case(NamedTuple):
    time: int
    block: int = 4
    selected: int = 4
    window: int = 5
    heads: int = 1
    groups: int = 2
    width: int = 16
    documents: tuple[int, ...] = ()  # lengths
    dtype: torch.dtype = torch.float32
    batch: int = 1
    data: str = "random"  # random, ties (all blocks equally important), strong (extreme scores)
    gates: str = "all"  # all, compression, selection, window (the others are 0)


SMALL = [
    Case(1, groups=1),
    Case(2, batch=2),
    Case(63, groups=1),
    Case(64, groups=1, data="ties"),
    Case(65, 8, 5, groups=3, width=24, dtype=torch.float16),
    Case(10, 2, 3, 100, groups=16, batch=2),
    Case(20, 1, 4, 1, data="ties", groups=1),
    Case(100, 70, 3, 7, groups=1),
    Case(30, 2, 5, gates="compression", width=32),
    Case(40, 4, 5, gates="selection", data="strong", dtype=torch.float16),
    Case(30, documents=(1, 20, 1, 1, 7), heads=2),
]
LARGE = [
    Case(
        time, 64, selected, window, heads=2, groups=groups, width=width, dtype=dtype,
        batch=1 if time > 2000 else 2,
    )
    for time, selected, window in [(63, 16, 64), (127, 3, 100), (1025, 5, 512), (4096, 16, 512)]
    for width, groups in [(16, 16), (32, 4), (64, 1), (80, 3), (128, 2), (256, 1)]
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
] + [
    Case(4096, 64, 16, 512, heads=2, groups=16, width=width, dtype=dtype, gates=gates, data=data)
    for width in (64, 128)
    for dtype in (torch.bfloat16, torch.float16)
    for data, gates in [
        ("random", "compression"), ("random", "selection"), ("strong", "all"), ("ties", "all"),
    ]
] + [
    Case(4096, block, 16, 512, groups=8, width=64, documents=documents, dtype=torch.bfloat16)
    for block, documents in [
        (64, (1, 1, 1000, 7, 2000, 1087)), (32, (2049, 1, 2046)), (100, (4096,)), (128, (4095, 1)),
        (64, (1,) * 4096), (4, (4096,)),
    ]
]  # fmt: skip


def name(case: Case) -> str:
    return "-".join(str(value) for value in case).replace("torch.", "")


def inputs(case: Case) -> list[torch.Tensor]:
    torch.manual_seed(case.time + case.width)
    heads = case.heads * case.groups
    shape = case.batch, case.time
    q = torch.randn(*shape, heads, case.width)
    k, v = (torch.randn(*shape, case.heads, case.width) for _ in range(2))
    gate = torch.randn(*shape, heads, 3)
    if case.data == "ties":
        q = torch.zeros_like(q)
    if case.data == "strong":
        q = q * 10
    if case.gates != "all":
        only = torch.tensor([case.gates == x for x in ("compression", "selection", "window")])
        gate = gate * only
    return [x.to(DEVICE, case.dtype) for x in (q, k, v, gate)]


def clear(case: Case, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Whether the choice of blocks hangs on more than the last digits, [B, T, H].

    Where it does not, rounding decides, and forms may rightly differ.
    """
    parts = []
    lengths = case.documents or (case.time,)
    for q_part, k_part in zip(q.split(lengths, 1), k.split(lengths, 1), strict=True):
        time = q_part.shape[1]
        whole = time // case.block
        i = torch.arange(time, device=q.device)[:, None]
        p = torch.arange(whole, device=q.device)
        pooled = k_part[:, : whole * case.block].unflatten(1, (whole, case.block)).mean(2)
        score = torch.einsum("bthrd,bphd->bthrp", q_part.unflatten(2, (case.heads, -1)), pooled)
        score = score * case.width**-0.5
        complete = (p < (i + 1) // case.block)[:, None, None]
        weight = score.masked_fill(~complete, -torch.inf).softmax(-1).nan_to_num().sum(3)
        free = (p > 0) & (p < i // case.block - 1)
        weight = weight.masked_fill(~free[:, None], -1).sort(-1, descending=True).values
        weight = torch.nn.functional.pad(weight, (0, case.selected), value=-1)
        # the last that is chosen and the first that is not
        last, following = weight[..., case.selected - 4], weight[..., case.selected - 3]
        contested = (following >= 0) & (torch.tensor(case.selected > 3, device=q.device))
        parts.append(~contested | (last - following > 1e-4 * last))
    return torch.cat(parts, 1)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What is allocated and not written is NaN or the largest integer."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def plain_compression(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gate: torch.Tensor, case: Case
) -> torch.Tensor:
    """The first branch in the dtype of its inputs throughout, unlike the PyTorch form."""
    whole = case.time // case.block
    k, v = (x[:, : whole * case.block].unflatten(1, (whole, case.block)).mean(2) for x in (k, v))
    complete = (torch.arange(case.time, device=q.device)[:, None] + 1) // case.block
    mask = torch.arange(whole, device=q.device) < complete
    score = torch.einsum("bthrd,bphd->bthrp", q.unflatten(2, (case.heads, -1)), k)
    score = (score * case.width**-0.5).masked_fill(~mask[:, None, None], -1e4)
    weight = score.softmax(-1) * mask[:, None, None]
    return torch.einsum("bthrp,bphd->bthrd", weight, v).flatten(2, 3) * gate[..., :1]


def check(case: Case) -> None:
    """Output and gradients within twice plain PyTorch's own error, and repeatable."""
    tensors = inputs(case)
    o_grad = torch.randn_like(tensors[0])
    if case.data != "ties":
        sure = clear(case, tensors[0].double(), tensors[1].double())
        assert sure.float().mean() > 0.8
        sure = sure.repeat_interleave(case.groups, 2)[..., None]
    else:
        sure = torch.ones_like(o_grad[..., :1])
    o_grad = o_grad * sure
    borders = torch.tensor([0, *case.documents]).cumsum(0).to(DEVICE) if case.documents else None

    def run(dtype: torch.dtype, impl: str) -> list[torch.Tensor]:
        leaves = [x.detach().to(dtype).requires_grad_() for x in tensors]
        own = leaves
        if impl == "plain":
            own = [*leaves[:3], leaves[3] * torch.tensor([0, 1, 1], device=DEVICE)]
        o = nsa_attention(
            *own, block=case.block, selected=case.selected, window=case.window,
            cu_seqlens=borders, impl="chunked" if impl == "plain" else impl,
        )  # fmt: skip
        if impl == "plain":
            o = o + plain_compression(*leaves, case)
        grads = torch.autograd.grad(o, leaves, o_grad.to(dtype))
        return [x.detach() for x in (o * sure, *grads)]

    ours = run(case.dtype, "triton")
    again = ours if INTERPRETED else run(case.dtype, "triton")
    # the PyTorch form's compression is float32 throughout
    plain = "plain" if case.gates == "compression" else "chunked"
    low, exact = run(case.dtype, plain), run(torch.float64, "chunked")
    for label, x, y, z, e in zip(
        ("o", "dq", "dk", "dv", "dgate"), ours, again, low, exact, strict=True
    ):
        assert x.dtype == case.dtype
        assert torch.equal(x, y), f"{label}: two runs differ"
        allowed = 2 * (z.double() - e).norm() + 1e-6 * (e.norm() + e.numel() ** 0.5)
        assert (x.double() - e).norm() <= allowed, f"{label}: {(x.double() - e).norm()} > {allowed}"
        # a single element, summed in another order, may differ more than all of them together
        worst = 4 * (z.double() - e).abs().max() + torch.finfo(case.dtype).eps * e.abs().max()
        assert (x.double() - e).abs().max() <= worst + 4e-6, f"{label}: largest error"


def check_steps(case: Case, steps: int, graph: bool = False) -> None:
    """Steps of sequences of different lengths within twice the PyTorch form's error; the same cache
    after them.
    """
    q, k, v, gate = inputs(case)
    capacity = case.time
    lengths = torch.tensor([0, capacity // 3, capacity - steps])[-case.batch :].to(DEVICE)
    used = torch.arange(capacity, device=DEVICE) < lengths[:, None]
    k, v = (x * used[..., None, None] for x in (k, v))
    options = {"block": case.block, "selected": case.selected, "window": case.window}
    # [B, C, H, D] in memory, as after a prefill
    ours, low, exact = (
        nsa_cache(
            k.to(dtype, copy=True).movedim(1, 2), v.to(dtype, copy=True).movedim(1, 2),
            block=case.block, length_B=lengths.clone(),
        )
        for dtype in (case.dtype, case.dtype, torch.float64)
    )  # fmt: skip
    token = [x[:, 0].clone() for x in (q, torch.randn_like(k), torch.randn_like(v), gate)]
    o = torch.empty(0)
    captured = torch.cuda.CUDAGraph() if graph else None
    for step in range(steps):
        for x, new in zip(token, (q, k, v, gate), strict=True):
            x.copy_(torch.randn_like(new[:, step]))
        if captured is None or step < 2:
            o = nsa_decode_step(*token, ours, impl="triton", **options)
        elif step == 2:
            state = [x.clone() for x in ours]
            with torch.cuda.graph(captured):
                o = nsa_decode_step(*token, ours, impl="triton", **options)
            for x, y in zip(ours, state, strict=True):
                assert torch.equal(x, y)
            captured.replay()
        else:
            captured.replay()
        z = nsa_decode_step(*token, low, impl="gathered", **options).double()
        e = nsa_decode_step(*(x.double() for x in token), exact, impl="gathered", **options)
        assert o.dtype == case.dtype
        error = (o.double() - e).norm()
        allowed = 2 * (z - e).norm() + 1e-6 * (e.norm() + e.numel() ** 0.5)
        assert error <= allowed, f"step {step}: {error} > {allowed}"
    assert torch.equal(ours.length_B, lengths + steps)
    for x, e in zip(ours[:4], exact[:4], strict=True):
        torch.testing.assert_close(x.double(), e, rtol=1e-3, atol=1e-5)


def check_step_reads_only_what_it_chose() -> None:
    case = Case(60, heads=2, width=16)
    q, k, v, gate = inputs(case)
    k, v = k.movedim(1, 2), v.movedim(1, 2)
    first = (torch.arange(60, device=DEVICE) < 59)[:, None]
    length = torch.tensor([59], device=DEVICE)
    caches = [nsa_cache(k * first, v * first, block=4, length_B=length.clone()) for _ in range(2)]
    token = q[:, 59], k[:, :, 59], v[:, :, 59], gate[:, 59]
    options = {"block": 4, "selected": 3, "window": 5}
    exact = nsa_decode_step(*token, caches[0], impl="gathered", **options)
    for x in caches[1][:2]:
        x[:, :, 4:52] = torch.nan
    o = nsa_decode_step(*token, caches[1], impl="triton", **options)
    torch.testing.assert_close(o, exact)
    # the cache is full now: nothing may be written, and that shows
    before = [x.clone() for x in caches[0]]
    o = nsa_decode_step(*token, caches[0], impl="triton", **options)
    assert o.isnan().all()
    for x, y in zip(caches[0][:4], before[:4], strict=True):
        assert torch.equal(x, y)


if INTERPRETED:

    @pytest.mark.parametrize("case", SMALL, ids=name)
    def test_attention(case: Case) -> None:
        check(case)

    def test_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
        from forgetmenot_kernels.nsa import triton_attention

        monkeypatch.setattr(triton_attention, "IMPORTANCE_BYTES", 1)
        monkeypatch.setattr(triton_attention, "ITEM_ROWS", 16)
        monkeypatch.setattr(triton_attention, "CHUNK", 16)
        check(Case(50, groups=4, documents=(1, 48, 1)))

    @pytest.mark.parametrize(
        "case",
        [
            Case(60, heads=2, groups=1, batch=3),
            Case(150, 70, 3, 7, groups=5, width=24, dtype=torch.float16),
        ],
        ids=name,
    )
    def test_steps(case: Case) -> None:
        check_steps(case, 3)

    def test_step_reads_only_what_it_chose() -> None:
        check_step_reads_only_what_it_chose()

    def test_errors_name_the_argument() -> None:
        tensors = inputs(Case(6))
        options: dict[str, Any] = {"block": 4, "selected": 3, "window": 5, "impl": "triton"}
        with pytest.raises(TypeError, match=r"q: found torch.float64; allowed: float32, float16"):
            nsa_attention(*(x.double() for x in tensors), **options)
        with pytest.raises(ValueError, match=r"scale: found -1.0; allowed: positive"):
            nsa_attention(*tensors, scale=-1.0, **options)
        q, k, v, gate = (x.double() for x in tensors)
        cache = nsa_cache(k.movedim(1, 2), v.movedim(1, 2), block=4)
        with pytest.raises(TypeError, match=r"pooled_k_BHPD: found torch.float64"):
            nsa_decode_step(q[:, 0], k[:, 0], v[:, 0], gate[:, 0], cache, **options)

else:

    def test_in_the_interpreter() -> None:
        command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", __file__]
        environment: dict[str, Any] = dict(os.environ, TRITON_INTERPRET="1")
        folder = Path(__file__).parents[2]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

    def test_cpu_tensors_need_the_interpreter() -> None:
        tensors = [torch.zeros(1, 2, 1, n) for n in (8, 8, 8, 3)]
        with pytest.raises(ValueError, match="q: found device cpu; allowed with impl 'triton'"):
            nsa_attention(*tensors, block=4, selected=3, window=5, impl="triton")

    @gpu
    @pytest.mark.parametrize("case", SMALL + LARGE, ids=name)
    def test_attention_on_gpu(case: Case) -> None:
        check(case)

    @gpu
    @pytest.mark.parametrize("graph", [False, True])
    @pytest.mark.parametrize(
        "case",
        [
            Case(time, 64, 16, 512, heads=2, groups=groups, width=width, dtype=dtype, batch=3)
            for time in (300, 5000)
            for groups, width in [(16, 64), (1, 128), (3, 256), (4, 16)]
            for dtype in (torch.float32, torch.float16, torch.bfloat16)
        ],
        ids=name,
    )
    def test_steps_on_gpu(case: Case, graph: bool) -> None:
        check_steps(case, 70 if graph else 5, graph)

    @gpu
    def test_step_reads_only_what_it_chose_on_gpu() -> None:
        check_step_reads_only_what_it_chose()
