"""The Triton decode step of LTE against the PyTorch form: in Triton's interpreter on a CPU (one
subprocess, since the interpreter has to be chosen before Triton is imported), and on a GPU.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from forgetmenot_kernels.lte_attention import Cache, lte_decode_step
from forgetmenot_kernels.lte_attention.cache import empty_cache

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
on_device = (lambda test: test) if INTERPRETED else pytest.mark.gpu


class Case(NamedTuple):
    window: int
    kept: int
    sink: int = 0
    heads: int = 2
    groups: int = 1
    width: int = 16
    dtype: torch.dtype = torch.float32
    ties: bool = False
    lengths: tuple[int, ...] = (0, 3, 1000)  # tokens that the sequences begin with
    steps: int = 8


SMALL = [
    Case(5, 3, 2, groups=2),
    Case(5, 3, ties=True, steps=20),
    Case(1, 1, heads=1),
    Case(4, 2, sink=2, ties=True),
    Case(6, 0, groups=3, width=24),
    Case(70, 30, 4, width=20, dtype=torch.float16, lengths=(0, 68, 71, 100)),
    Case(70, 70, groups=4, heads=1, lengths=(200, 69)),
]
LARGE = [
    *SMALL,
    *(
        Case(window, kept, 4, heads, groups, width, dtype, lengths=(0, 767, 768, 1024, 32768))
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        for window, kept, heads, groups, width in [
            (769, 512, 8, 4, 64),
            (333, 77, 1, 16, 128),
            (65, 63, 3, 2, 256),
            (1024, 0, 4, 8, 96),
        ]
    ),
    Case(100, 2000, 4, width=32, dtype=torch.bfloat16, lengths=(0, 100, 2100, 5000)),
    Case(769, 512, 4, 16, 1, 64, torch.bfloat16, lengths=(0, 767, 768, 1024, 32768)),
    Case(769, 512, 4, dtype=torch.bfloat16, ties=True, lengths=tuple(range(700, 780)), steps=70),
]
cases = pytest.mark.parametrize("case", SMALL if INTERPRETED else LARGE, ids=str)


def scores(case: Case, *shape: int) -> torch.Tensor:
    score = torch.randn(*shape)
    return ((score * 1.5).round() / 4 if case.ties else score).to(DEVICE)


def filled(case: Case) -> Cache:
    """The memory of sequences of these lengths; what is in no use yet is NaN."""
    torch.manual_seed(case.window)
    batch = len(case.lengths)
    cache = empty_cache(torch.empty(batch, 1, case.heads, case.width), case.window, case.kept)
    length_B11 = torch.tensor(case.lengths)[:, None, None]
    near = torch.arange(case.window) < length_B11
    # as many kept tokens as may have left the window, some slots still free
    left = (length_B11 - case.window).clamp(min=0, max=2 * case.kept)
    free = torch.arange(case.kept) >= left - torch.randint(0, 3, (batch, case.heads, 1))
    order = torch.rand(batch, case.heads, max(1, int(left.max()))).argsort(-1)[..., : case.kept]
    position = torch.full_like(cache.position_BHN, -1)
    position[..., : order.shape[-1]] = order
    position = position.masked_fill(free | (position >= left), -1)
    empty = torch.cat((~near.expand(-1, case.heads, -1), position < 0), 2)
    k, v = (torch.randn(cache.k_BHCD.shape).masked_fill(empty[..., None], torch.nan) for _ in "kv")
    score = scores(case, *empty.shape).cpu()
    kept_score = score[..., case.window :].abs().masked_fill(position < 0, -torch.inf)
    score[..., case.window :] = kept_score.masked_fill((position >= 0) & (position < case.sink),
                                                       torch.inf)  # fmt: skip
    if not case.kept:
        score = score[..., :0]
    cache = Cache(k.to(case.dtype), v.to(case.dtype), score, position, torch.tensor(case.lengths))
    return Cache(*(x.to(DEVICE).contiguous() for x in cache))


def copied(cache: Cache, dtype: torch.dtype | None = None) -> Cache:
    """A memory of its own; with zeros for NaN, which plain products do not pass over."""
    k, v = (x.nan_to_num() for x in (cache.k_BHCD, cache.v_BHCD))
    copy = Cache(k, v, *(x.clone() for x in cache[2:]))
    if dtype is None:
        return copy
    return Cache(*(x.to(dtype) if x.is_floating_point() else x for x in copy))


def token(case: Case) -> list[torch.Tensor]:
    """Q, k and v of a new token; they are parts of one tensor."""
    heads = case.heads * case.groups
    x = torch.randn(len(case.lengths), heads + 2 * case.heads, case.width)
    return list(x.to(DEVICE, case.dtype).split([heads, case.heads, case.heads], 1))


@on_device
@cases
@pytest.mark.usefixtures("poisoned_memory")
def test_step_is_that_of_the_pytorch_form(case: Case) -> None:
    ours = filled(case)
    plain, exact = copied(ours), copied(ours, torch.float64)
    addresses = [x.data_ptr() for x in ours]
    options = {"window": case.window, "sink": case.sink}
    for _ in range(case.steps):
        new = token(case)
        low = lte_decode_step(*new, plain, **options, impl="torch").double()
        best = lte_decode_step(*(x.double() for x in new), exact, **options, impl="torch")
        o = lte_decode_step(*new, ours, **options, impl="triton")
        allowed = 2 * (low - best).norm() + 1e-6 * best.norm()
        assert o.dtype == case.dtype
        assert (o.double() - best).norm() <= allowed
        for name, x, y in zip(Cache._fields, copied(ours), plain, strict=True):
            assert torch.equal(x, y), name
        if case.kept:  # the token's score comes later
            slot = (ours.length_B - 1) % case.window
            score = scores(case, len(slot), case.heads)
            for cache in (ours, plain, exact):
                rows = torch.arange(len(slot), device=DEVICE)
                cache.score_BHC[rows, :, slot] = score.to(cache.score_BHC.dtype)
    assert [x.data_ptr() for x in ours] == addresses


@on_device
def test_kept_slots_are_looked_through_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    from forgetmenot_kernels.lte_attention import triton_decode

    monkeypatch.setattr(triton_decode, "JOINED", 2)
    monkeypatch.setattr(triton_decode, "KEPT", 2)
    test_step_is_that_of_the_pytorch_form(
        Case(3, 16, 2, heads=3, ties=True, lengths=(40, 1000), steps=24)
    )
    monkeypatch.setattr(triton_decode, "KEPT", 64)
    test_step_is_that_of_the_pytorch_form(Case(70, 150, 2, heads=1, lengths=(71, 400)))


@on_device
def test_a_sequence_does_not_depend_on_its_batch() -> None:
    case = Case(70, 30, 4, dtype=torch.float16, lengths=(0, 90, 200))
    whole = filled(case)
    alone = Cache(*(x[1:2].clone() for x in whole))
    new = token(case)
    o = lte_decode_step(*new, whole, window=70, sink=4, impl="triton")
    again = lte_decode_step(*(x[1:2] for x in new), alone, window=70, sink=4, impl="triton")
    assert torch.equal(o[1:2], again)


@on_device
def test_what_it_cannot_do_is_refused() -> None:
    case = Case(5, 3)
    cache, new = filled(case), token(case)
    with pytest.raises(TypeError, match="q: found float64; allowed with triton: float32"):
        lte_decode_step(*(x.double() for x in new), cache, window=5, impl="triton")
    with pytest.raises(TypeError, match=r"k: found dtype torch.float16; allowed: q's"):
        lte_decode_step(new[0], new[1].half(), new[2], cache, window=5, impl="triton")
    with pytest.raises(ValueError, match="q: found inputs that require a gradient"):
        lte_decode_step(new[0].requires_grad_(), *new[1:], cache, window=5, impl="triton")
    cache = cache._replace(v_BHCD=cache.v_BHCD.mT.contiguous().mT)
    with pytest.raises(ValueError, match=r"cache.v_BHCD: found strides .*; allowed: contiguous"):
        lte_decode_step(*(x.detach() for x in new), cache, window=5, impl="triton")


if not INTERPRETED:

    def test_in_the_interpreter(passes_in_the_interpreter: Callable[[str], None]) -> None:
        passes_in_the_interpreter(__file__)

    def test_cpu_tensors_are_refused_without_the_interpreter() -> None:
        x = torch.zeros(1, 2, 4)
        with pytest.raises(ValueError, match=r"q: found device cpu; allowed with impl 'triton'"):
            lte_decode_step(x, x, x, empty_cache(x[:, None], 2, 1), window=2, impl="triton")

    @pytest.mark.gpu
    def test_replayed_graphs_of_a_stack_are_its_steps() -> None:
        case = Case(769, 512, 4, 8, 4, 64, torch.bfloat16, lengths=(0, 700, 32768))
        layers = [filled(case) for _ in range(3)]
        expected = [Cache(*(x.clone() for x in cache)) for cache in layers]
        new = token(case)
        options: dict[str, Any] = {"window": 769, "sink": 4, "impl": "triton"}

        def step(caches: list[Cache]) -> torch.Tensor:
            q, k, v = new
            for cache in caches:
                q = lte_decode_step(q, k, v, cache, **options)
            return q

        step([Cache(*(x.clone() for x in cache)) for cache in layers])  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            o = step(layers)
        for _ in range(4):
            for x, y in zip(new, token(case), strict=True):
                x.copy_(y)
            graph.replay()
            assert torch.equal(o, step(expected))
        for ours, other in zip(layers, expected, strict=True):
            for x, y in zip(ours, other, strict=True):
                assert torch.equal(x.nan_to_num(), y.nan_to_num())

    @pytest.mark.gpu
    def test_a_step_does_not_wait_for_the_device() -> None:
        case = Case(769, 512, 4, 8, 4, 64, torch.bfloat16, lengths=(100, 2000))
        cache, new = filled(case), token(case)
        lte_decode_step(*new, cache, window=769, sink=4)
        torch.cuda.set_sync_debug_mode("error")
        try:
            lte_decode_step(*new, cache, window=769, sink=4)
        finally:
            torch.cuda.set_sync_debug_mode("default")
