"""The streaming top-b against a plain simulation, attention under its mask, and decoding."""

import functools
import itertools

import pytest
import torch

from forgetmenot_kernels.lte_attention import (
    Columns,
    attend,
    lte_attention,
    lte_decode_step,
    lte_segment_cap,
    lte_streaming_cap,
)
from forgetmenot_kernels.lte_attention.cache import empty_cache
from forgetmenot_kernels.lte_attention.reference import FOREVER, visible
from forgetmenot_kernels.lte_attention.segment_cap import segment_cap
from forgetmenot_kernels.lte_attention.streaming_cap import Slots


def simulate(
    scores: list[float], window: int, sink: int, budget: int | None
) -> tuple[list[int], list[set[int]]]:
    """One head, one token at a time, written from the rule alone.

    Returns the first query that no longer sees each column (beyond window and sinks), and what
    every query sees.
    """
    held: dict[int, float] = {}
    until = [0] * len(scores)
    seen = []
    for i in range(len(scores)):
        j = i - window
        if j >= 0 and (scores[j] > 0 or j < sink):
            score = float("inf") if j < sink else scores[j]
            if budget is None or len(held) < budget:
                held[j], until[j] = score, FOREVER
            else:
                others = [c for c in held if c >= sink]
                low = min((held[c] for c in others), default=float("inf"))
                if score > low:
                    leaver = max(c for c in others if held[c] == low)
                    del held[leaver]
                    until[leaver] = i
                    held[j], until[j] = score, FOREVER
        seen.append(set(range(max(0, i - window + 1), i + 1)) | set(held))
        seen[-1] |= set(range(min(sink, i + 1)))
    return until, seen


def scores(time: int, ties: bool) -> torch.Tensor:
    """[1, T, 3]; with ties: few distinct values, many of them zero."""
    score = torch.randn(1, time, 3)
    return (score * 1.5).round() / 4 if ties else score


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("window", "sink", "budget"),
    [(5, 0, 3), (5, 2, 4), (3, 2, 2), (1, 0, 1), (60, 2, 4), (4, 3, None), (4, 0, 50), (2, 0, 0)],
)
def test_cap_and_mask_follow_the_rule(window: int, sink: int, budget: int, ties: bool) -> None:
    torch.manual_seed(window)
    lengths = [50, 1, 23, 2]
    score = torch.cat([scores(time, ties) for time in lengths], 1)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    rule = {"window": window, "sink": sink, "budget": budget}
    packed = lte_streaming_cap(score, **rule, cu_seqlens=cu_seqlens)
    assert packed.dtype == torch.int32
    for document, until in zip(score.split(lengths, 1), packed.split(lengths, 1), strict=True):
        time = document.shape[1]
        alone = lte_streaming_cap(document, **rule)
        assert torch.equal(until.clamp(max=time), alone)
        position = torch.arange(time)[None]
        mask = visible(position, position[..., None], until, window, sink)
        for h in range(3):
            expected, seen = simulate(document[0, :, h].tolist(), window, sink, budget)
            left = range(max(0, time - window))  # the others have not left the window
            found = [FOREVER if x >= time else x for x in alone[0, :, h].tolist()]
            assert [found[j] for j in left] == [expected[j] for j in left]
            for i in range(time):
                assert set(mask[0, h, i].nonzero().flatten().tolist()) == seen[i]


def test_everything_at_once_is_evicted_by_rising_scores() -> None:
    score = torch.arange(1.0, 21.0).view(1, 20, 1)
    until = lte_streaming_cap(score, window=1, sink=0, budget=1)
    # token j enters as query j + 1 arrives and goes as query j + 2 does
    expected = [j + 2 for j in range(18)] + [20, 20]
    assert until.flatten().tolist() == expected


@pytest.mark.parametrize("lengths", [[37], [1, 19, 2, 15]])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("window", [None, 1, 4, 50])
@pytest.mark.parametrize("kept", [False, True])
def test_dense_equals_loop_with_gradients(
    window: int | None, groups: int, lengths: list[int], kept: bool
) -> None:
    torch.manual_seed(0)
    time, heads, width = sum(lengths), 2, 4
    leaves = [torch.randn(1, time, heads * g, width) for g in (groups, 1, 1)]
    leaves = [x.double().requires_grad_() for x in leaves]
    until = torch.randint(0, time, (1, time, heads)) if kept else None
    borders = torch.tensor([0, *lengths]).cumsum(0) if len(lengths) > 1 else None
    results = []
    for impl in ("dense", "looped"):
        o, lse = lte_attention(
            *leaves, until, window=window, sink=1, cu_seqlens=borders, return_lse=True, impl=impl
        )
        results.append([o, lse, *torch.autograd.grad((o.sin() + lse[..., None]).sum(), leaves)])
        alone = lte_attention(*leaves, until, window=window, sink=1, cu_seqlens=borders, impl=impl)
        torch.testing.assert_close(alone, o)
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact)


def test_long_sequences_are_the_same_in_chunks_of_queries() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1100, 2, 8) for _ in range(3))
    until = lte_streaming_cap(torch.randn(1, 1100, 2), window=64, sink=4, budget=16)
    for window, columns in ((64, until), (64, None), (None, None)):
        ours = lte_attention(q, k, v, columns, window=window, sink=4)
        position = torch.arange(1100)[None]
        whole = attend(q, Columns(k, v, position[..., None], columns), position, window=window,
                       sink=4)  # fmt: skip
        torch.testing.assert_close(ours, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("window", "sink", "budget"), [(5, 0, 3), (5, 2, 4), (1, 0, 1), (6, 0, 0)])
def test_decoding_sees_what_the_whole_sequence_does(window: int, sink: int, budget: int) -> None:
    torch.manual_seed(0)
    lengths, heads, groups, width = [40, 27, 1], 2, 3, 4
    starts = [40 - length for length in lengths]  # every sequence begins at a time of its own
    q = torch.randn(3, 40, heads * groups, width, dtype=torch.float64)
    k, v = (torch.randn(3, 40, heads, width, dtype=torch.float64) for _ in range(2))
    score = torch.randn(3, 40, heads, dtype=torch.float64)
    rule = {"window": window, "sink": sink}
    expected = []
    for b, start in enumerate(starts):
        own = [x[b : b + 1, start:] for x in (q, k, v, score)]
        until = lte_streaming_cap(own[3], **rule, budget=budget)
        expected.append(lte_attention(*own[:3], until, **rule)[0])

    cache = empty_cache(k, window, budget)
    addresses = [x.data_ptr() for x in cache]
    for t in range(40):
        cache.length_B[torch.tensor(starts) >= t] = 0  # has not begun: forget what came before it
        cache.position_BHN[torch.tensor(starts) >= t] = -1
        if budget:
            cache.score_BHC[torch.tensor(starts) >= t, :, window:] = -torch.inf
        o = lte_decode_step(q[:, t], k[:, t], v[:, t], cache, **rule)
        if budget:
            slot = (cache.length_B - 1) % window
            cache.score_BHC[torch.arange(3), :, slot] = score[:, t]
        for b, start in enumerate(starts):
            if t >= start:
                torch.testing.assert_close(o[b], expected[b][t - start])
    assert cache.length_B.tolist() == lengths
    assert [x.data_ptr() for x in cache] == addresses  # in place


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("window", "sink", "budget"), [(4, 0, 3), (4, 2, 5), (1, 1, 1), (7, 3, 8)])
@pytest.mark.parametrize("before", [0, 1, 3, 9, 40])
def test_a_segment_is_capped_at_once_as_step_by_step(
    window: int, sink: int, budget: int, before: int, ties: bool
) -> None:
    rule = {"window": window, "sink": sink, "budget": budget}
    random = torch.Generator().manual_seed(before)
    score = torch.randn(2, before + 30, 3, generator=random)
    score = score.mul(2).round() if ties else score
    until = lte_streaming_cap(score[:, :before], **rule) if before else torch.zeros(2, 0, 3)
    # What is held when the segment comes, in an order as decoding leaves it, among empty slots.
    left = torch.arange(before) < before - window
    alive = left[None, :, None] & (until >= before)
    held_score = torch.full((2, budget, 3), -torch.inf)
    held_position = torch.full((2, budget, 3), -1)
    for b, h in itertools.product(range(2), range(3)):
        kept = alive[b, :, h].nonzero()[:, 0]
        slots = torch.randperm(budget, generator=random)[: len(kept)]
        held_position[b, slots, h] = kept
        held_score[b, slots, h] = score[b, kept, h].where(kept >= sink, torch.inf)
    held = Slots(held_score, held_position)
    position = torch.arange(before - window, before + 30).clamp(min=-1).expand(2, -1)
    columns = torch.cat((score.new_full((2, window, 3), 9), score), 1)[:, before:]
    expected = lte_segment_cap(columns, position, held, **rule, impl="torch")
    whole = functools.partial(lte_streaming_cap, window=window, sink=0, budget=budget, impl="torch")
    found = segment_cap(whole, columns, position, sink, held)
    for one, other in zip(found, expected, strict=True):
        assert (one == other).all()


def test_errors_name_the_argument() -> None:
    x = torch.zeros(1, 3, 2, 4)
    position = torch.arange(3)[None]
    with pytest.raises(ValueError, match="q: found 3 heads; allowed: a multiple of 2"):
        attend(torch.zeros(1, 3, 3, 4), Columns(x, x, position[..., None]), position, window=2)
    with pytest.raises(ValueError, match="window: found 0"):
        lte_attention(x, x, x, window=0)
    with pytest.raises(ValueError, match=r"visible_until: found shape \(1, 3\)"):
        lte_attention(x, x, x, position, window=2)
    with pytest.raises(ValueError, match="budget: found 1; allowed: at least the 2 sinks"):
        lte_streaming_cap(x[..., 0], window=1, sink=2, budget=1)
    with pytest.raises(ValueError, match="impl: found 'fast'; allowed: dense, looped"):
        lte_attention(x, x, x, window=1, impl="fast")
    with pytest.raises(ValueError, match="window: found 3; allowed: the cache's 2"):
        lte_decode_step(x[:, 0], x[:, 0], x[:, 0], empty_cache(x, 2, 1), window=3)
