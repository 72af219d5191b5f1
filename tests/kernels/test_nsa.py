"""Native sparse attention: the forms against the float64 definition, and the rule on its own."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from forgetmenot_kernels.nsa import (
    Cache,
    nsa_attention,
    nsa_cache,
    nsa_cached_attention,
    nsa_decode_step,
)

SMALL = {"block": 4, "selected": 4, "window": 5}


def inputs(
    time: int, heads: int = 2, group: int = 2, width: int = 8, batch: int = 2
) -> list[torch.Tensor]:
    torch.manual_seed(time)
    shapes = [(heads * group, width), (heads, width), (heads, width), (heads * group, 3)]
    return [torch.randn(batch, time, *s, dtype=torch.float64).requires_grad_() for s in shapes]


def with_gradients(leaves: list[torch.Tensor], **options: Any) -> list[torch.Tensor]:
    o = nsa_attention(*leaves, **options)
    return [o, *torch.autograd.grad(o.sin().sum(), leaves)]


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("time", [1, 2, 3, 4, 5, 63, 64, 65])
@pytest.mark.parametrize(
    ("block", "selected", "window"), [(4, 4, 5), (1, 3, 1), (3, 5, 100), (100, 3, 7)]
)
def test_chunked_equals_the_loop_with_gradients(
    time: int, group: int, block: int, selected: int, window: int
) -> None:
    batch = 2 if time < 10 else 1
    leaves = inputs(time, 2, group, batch=batch)
    options = {"block": block, "selected": selected, "window": window, "scale": 0.7}
    ours, exact = (with_gradients(leaves, impl=impl, **options) for impl in ("chunked", "looped"))
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b)


def test_chunks_of_queries_join() -> None:
    leaves = inputs(300, 1, 2, batch=1)
    options = {"block": 16, "selected": 5, "window": 40}
    ours, exact = (with_gradients(leaves, impl=impl, **options) for impl in ("chunked", "looped"))
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b)


def seen_by(query: int, leaves: list[torch.Tensor], branch: int, **options: Any) -> list[int]:
    """Columns whose values reach the output of one query through one branch."""
    q, k, v, gate = leaves
    only = torch.zeros_like(gate)
    only[..., branch] = 1
    o = nsa_attention(q, k, v, only, **options)
    (gradient,) = torch.autograd.grad(o[0, query].sum(), v)
    return gradient[0].abs().sum((-1, -2)).nonzero().flatten().tolist()


@pytest.mark.parametrize("impl", ["chunked", "looped"])
def test_what_each_branch_sees(impl: str) -> None:
    leaves = inputs(31, 1, 2, batch=1)
    options = {**SMALL, "impl": impl}
    # 27 + 1 tokens are 7 complete blocks; 26 + 1 are 6, and 2 + 1 none
    assert seen_by(27, leaves, 0, **options) == list(range(28))
    assert seen_by(26, leaves, 0, **options) == list(range(24))
    assert seen_by(2, leaves, 0, **options) == []
    assert seen_by(26, leaves, 2, **options) == [22, 23, 24, 25, 26]
    assert seen_by(1, leaves, 2, **options) == [0, 1]
    # blocks 0, 5 and 6 are forced, one is free
    picked = seen_by(26, leaves, 1, **options)
    assert {j // 4 for j in picked} >= {0, 5, 6}
    assert len({j // 4 for j in picked}) == 4
    assert len(picked) == 15
    assert seen_by(14, leaves, 1, **options) == list(range(15))  # four blocks begun: all of them


@pytest.mark.parametrize("impl", ["chunked", "looped"])
def test_the_group_chooses_by_its_summed_weights_and_ties_go_to_the_lowest(impl: str) -> None:
    leaves = inputs(31, 1, 2, batch=1)
    with torch.no_grad():
        leaves[0].zero_()  # every block is equally important
    options = {**SMALL, "impl": impl}
    assert seen_by(30, leaves, 1, **options) == [*range(8), *range(24, 31)]
    with torch.no_grad():
        leaves[1].zero_()
        leaves[0][:, :, 0, 0] = leaves[0][:, :, 1, 1] = 1
        leaves[1][0, 8:12, :, 0] = leaves[1][0, 16:20, :, 1] = 10.5  # each head's own favourite
        leaves[1][0, 12:16, :, :2] = 10  # the second choice of both: 0.38 + 0.38 > 0.62 + 0.00
    assert seen_by(30, leaves, 1, scale=1.0, **options) == [
        *range(4),
        *range(12, 16),
        *range(24, 31),
    ]


@pytest.mark.parametrize("group", [1, 4])
def test_steps_equal_the_full_pass_at_different_lengths(group: int) -> None:
    q, k, v, gate = (x.detach() for x in inputs(50, 2, group, batch=3))
    whole = nsa_attention(q, k, v, gate, impl="looped", **SMALL)
    length = torch.tensor([0, 7, 30])
    before = (torch.arange(50) < length[:, None])[..., None, None]
    cache = nsa_cache(
        (k * before).movedim(1, 2), (v * before).movedim(1, 2), block=4, length_B=length.clone()
    )
    places = [x.data_ptr() for x in cache]
    rows = torch.arange(3)
    for step in range(20):
        at = rows, length + step
        o = nsa_decode_step(q[at], k[at], v[at], gate[at], cache, **SMALL)
        torch.testing.assert_close(o, whole[at])
    assert [x.data_ptr() for x in cache] == places
    assert cache.length_B.tolist() == [20, 27, 50]
    after = (torch.arange(50) < cache.length_B[:, None])[..., None, None]
    expected = nsa_cache((k * after).movedim(1, 2), (v * after).movedim(1, 2), block=4)
    for ours, exact in zip(cache[:4], expected[:4], strict=True):
        torch.testing.assert_close(ours, exact)


def test_a_step_reads_only_what_it_chose() -> None:
    q, k, v, gate = (x.detach() for x in inputs(60, 2, 2, batch=1))
    exact = nsa_attention(q, k, v, gate, **SMALL)[:, -1]
    first = (torch.arange(60) < 59)[:, None, None]
    cache = nsa_cache(
        (k * first).movedim(1, 2), (v * first).movedim(1, 2), block=4, length_B=torch.tensor([59])
    )
    needed = torch.zeros(60, dtype=torch.bool)
    for branch in (1, 2):
        needed[seen_by(59, [q, k, v.requires_grad_(), gate], branch, **SMALL)] = True
    v.requires_grad_(False)
    assert needed.sum() < 32
    for x in cache[:2]:
        x[0, :, ~needed] = torch.nan
    o = nsa_decode_step(q[:, 59], k[:, 59], v[:, 59], gate[:, 59], cache, **SMALL)
    torch.testing.assert_close(o, exact)


def test_continuing_a_cache_equals_the_full_pass() -> None:
    leaves = inputs(40)
    q, k, v, gate = leaves
    whole = nsa_attention(*leaves, **SMALL)
    length = torch.tensor([40, 23])
    token = (torch.arange(40) < length[:, None])[..., None, None]
    cache = nsa_cache(
        (k * token).movedim(1, 2), (v * token).movedim(1, 2), block=4, length_B=length
    )
    places = length[:, None] - 9 + torch.arange(9)
    rows = torch.arange(2)[:, None]
    for impl in ("chunked", "looped"):
        o = nsa_cached_attention(q[rows, places], gate[rows, places], cache, impl=impl, **SMALL)
        torch.testing.assert_close(o, whole[rows, places])


@pytest.mark.parametrize("impl", ["chunked", "looped"])
def test_packed_documents_equal_each_alone_with_gradients(impl: str) -> None:
    leaves = inputs(30, batch=1)
    borders = [0, 1, 3, 20, 21, 30]
    packed = with_gradients(leaves, cu_seqlens=torch.tensor(borders), impl=impl, **SMALL)
    alone = []
    for a, b in pairwise(borders):
        alone.append(with_gradients([x[:, a:b] for x in leaves], impl=impl, **SMALL))
    for ours, *parts in zip(packed, *alone, strict=True):
        torch.testing.assert_close(ours, torch.cat(parts, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_of_the_inputs_precision(dtype: torch.dtype) -> None:
    leaves = [x.detach().to(dtype) for x in inputs(65, 2, 2, width=16, batch=1)]
    exact = nsa_attention(*(x.double() for x in leaves), impl="looped", **SMALL)
    ours = nsa_attention(*leaves, **SMALL)
    assert ours.dtype == dtype
    assert (ours - exact).norm() <= 2 * torch.finfo(dtype).eps * exact.norm()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        torch.testing.assert_close(nsa_attention(*leaves, **SMALL), ours, rtol=0, atol=0)
    q, k, v, gate = leaves
    first = (torch.arange(65) < 64)[:, None, None]
    cache = nsa_cache(
        (k * first).movedim(1, 2), (v * first).movedim(1, 2), block=4, length_B=torch.tensor([64])
    )
    assert cache.pooled_k_BHPD.dtype == torch.float32
    step = nsa_decode_step(q[:, 64], k[:, 64], v[:, 64], gate[:, 64], cache, **SMALL)
    assert step.dtype == dtype
    assert (step - exact[:, 64]).norm() <= 2 * torch.finfo(dtype).eps * exact[:, 64].norm()


def test_errors_name_the_argument() -> None:
    q, k, v, gate = (x.detach() for x in inputs(6))
    with pytest.raises(ValueError, match="selected: found 2; allowed: at least 3"):
        nsa_attention(q, k, v, gate, block=4, selected=2, window=5)
    with pytest.raises(ValueError, match="block: found 0"):
        nsa_attention(q, k, v, gate, block=0, selected=3, window=5)
    with pytest.raises(ValueError, match="window: found 0"):
        nsa_attention(q, k, v, gate, block=4, selected=3, window=0)
    with pytest.raises(ValueError, match="gate: found shape"):
        nsa_attention(q, k, v, gate[..., :2], **SMALL)
    with pytest.raises(ValueError, match="q: found 3 heads; allowed: a multiple of 2"):
        nsa_attention(q[:, :, :3], k, v, gate[:, :, :3], **SMALL)
    with pytest.raises(ValueError, match="k: found shape"):
        nsa_attention(q, k[:, :5], v, gate, **SMALL)
    with pytest.raises(ValueError, match="v: found shape"):
        nsa_attention(q, k, v[..., :5], gate, **SMALL)
    with pytest.raises(TypeError, match=r"q: found dtype torch.int64"):
        nsa_attention(q.long(), k, v, gate, **SMALL)
    with pytest.raises(ValueError, match="impl: found 'fast'; allowed: chunked, looped"):
        nsa_attention(q, k, v, gate, impl="fast", **SMALL)
    with pytest.raises(ValueError, match="q: found a batch of 2; allowed: 1 with cu_seqlens"):
        nsa_attention(q, k, v, gate, cu_seqlens=torch.tensor([0, 6]), **SMALL)
    k, v = k.movedim(1, 2), v.movedim(1, 2)
    cache = Cache(k, v, k[:, :, :1], v[:, :, :1], torch.tensor([5, 5]))
    k, v = k.movedim(2, 1), v.movedim(2, 1)
    with pytest.raises(ValueError, match="pooled_k_BHPD: found shape"):
        nsa_decode_step(q[:, 0], k[:, 0], v[:, 0], gate[:, 0], cache, **SMALL)
