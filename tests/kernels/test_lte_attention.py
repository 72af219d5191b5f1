"""The streaming top-b against a plain simulation of its rule, and attention under the mask."""

import pytest
import torch

from forgetmenot_kernels.lte_attention import FOREVER, Columns, attend, lte_streaming_cap
from forgetmenot_kernels.lte_attention.reference import visible


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


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("window", "sink", "budget"),
    [(5, 0, 3), (5, 2, 4), (3, 2, 2), (1, 0, 1), (60, 2, 4), (4, 3, None), (4, 0, 50), (2, 0, 0)],
)
def test_cap_and_mask_follow_the_rule(window: int, sink: int, budget: int, ties: bool) -> None:
    torch.manual_seed(window)
    time, heads = 50, 3
    score = torch.randn(2, time, heads)
    if ties:
        score = (score * 1.5).round() / 4  # few distinct values, many of them zero
    position = torch.arange(time).expand(2, time)
    until, _ = lte_streaming_cap(score, position, time, window=window, sink=sink, budget=budget)
    mask = visible(position, position[..., None], until, window, sink)
    for b in range(2):
        for h in range(heads):
            _, seen = simulate(score[b, :, h].tolist(), window, sink, budget)
            for i in range(time):
                assert set(mask[b, h, i].nonzero().flatten().tolist()) == seen[i]


def test_everything_at_once_is_evicted_by_rising_scores() -> None:
    score = torch.arange(1.0, 21.0).view(1, 20, 1)
    position = torch.arange(20)[None]
    until, _ = lte_streaming_cap(score, position, 20, window=1, sink=0, budget=1)
    # token j enters as query j + 1 arrives and goes as query j + 2 does
    expected = [j + 2 for j in range(18)] + [FOREVER, FOREVER]
    assert until.flatten().tolist() == expected


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("window", [None, 1, 4, 30])
def test_dense_equals_loop_with_gradients(window: int | None, groups: int) -> None:
    torch.manual_seed(0)
    batch, time, heads, width = 2, 11, 2, 4
    leaves = [torch.randn(batch, time, heads * g, width) for g in (groups, 1, 1)]
    leaves = [x.double().requires_grad_() for x in leaves]
    position = torch.arange(time).expand(batch, time).clone()
    position[1] = torch.cat((torch.full((3,), -1), torch.arange(time - 3)))
    until = torch.randint(0, time, (batch, time, heads))
    columns = Columns(*leaves[1:], position[..., None], until)
    token = (position >= 0)[..., None, None]
    results = []
    for impl in ("dense", "looped"):
        o = attend(leaves[0], columns, position, window=window, sink=1, impl=impl) * token
        results.append([o, *torch.autograd.grad(o.sin().sum(), leaves)])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact)


def test_errors_name_the_argument() -> None:
    x = torch.zeros(1, 3, 2, 4)
    position = torch.arange(3)[None]
    with pytest.raises(ValueError, match="q: found 3 heads; allowed: a multiple of 2"):
        attend(torch.zeros(1, 3, 3, 4), Columns(x, x, position[..., None]), position, window=2)
    with pytest.raises(ValueError, match="window: found 0"):
        attend(x, Columns(x, x, position[..., None]), position, window=0)
    with pytest.raises(ValueError, match="budget: found 1; allowed: at least the 2 sinks"):
        lte_streaming_cap(x[..., 0], position, 3, window=1, sink=2, budget=1)
