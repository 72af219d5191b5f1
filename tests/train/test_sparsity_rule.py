"""The controller on sequences of one length: the LTE specification's section 2.3, line by line."""

from collections.abc import Callable

import pytest
import torch
from sparsity_stub import controller, scores, steps
from torch import Tensor

BUDGET, LENGTH, MARGIN = 40, 123, 2


class Rule:
    """One head's lambda by section 2.3 (c), in plain Python."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.kept = float(LENGTH)
        self.weight = 0.0
        self.steps = 0

    def step(self, kept: float) -> float:
        """Lambda after a step in which `kept` tokens were kept."""
        self.steps += 1
        share = 2 / (1 + self.every / 2)
        self.kept = self.kept * (1 - share) + kept * share
        if self.steps == self.every:
            self.weight = 1e-9 if self.kept > 0.95 * BUDGET else 0.0
        elif self.steps % self.every == 0:
            if self.kept >= BUDGET:
                self.weight *= 1.5
            elif self.kept <= 0.95 * BUDGET:
                self.weight /= 2
            self.weight = min(self.weight, 1.0)
            if self.weight < 1e-9:
                self.weight = 0.0
            if self.weight == 0 and self.kept > 0.95 * BUDGET:
                self.weight = 1e-9
        return self.weight


def test_kept_is_the_positive_share_of_all_positions_but_the_margin() -> None:
    torch.manual_seed(0)
    score_BTH = torch.randn(4, LENGTH, 3)
    one = controller(BUDGET)
    one.penalty([{"score_BTH": score_BTH}])
    one.end_step(1)
    valid = LENGTH - MARGIN
    kept_H = (score_BTH[:, :valid] > 0).double().mean((0, 1)) * valid
    # every 32 steps: a coefficient of 2/17, and an average that starts at the sequence's length
    expected = LENGTH * 15 / 17 + kept_H * 2 / 17
    assert one.report()["kept"][0] == pytest.approx(expected.tolist(), rel=1e-6)


def test_lambda_changes_every_32_steps_and_first_to_its_smallest_value_or_0() -> None:
    one = controller(BUDGET)
    aux = scores(LENGTH, [100, 0])
    steps(one, 31, aux)
    assert one.report()["lambda"] == [[0.0, 0.0]]
    one.penalty([aux])
    one.end_step(32)
    assert one.report()["lambda"] == [[pytest.approx(1e-9), 0.0]]


@pytest.mark.parametrize(
    ("before", "kept", "after"),
    [
        (0.1, 40, 0.15),  # at the budget: too many
        (0.1, 39, 0.1),  # between 0.95 of the budget and the budget: as it is
        (0.1, 38, 0.05),  # at 0.95 of the budget: few enough
        (0.1, 0, 0.05),
        (0.9, 100, 1.0),  # at most 1
        (1.5e-9, 38, 0.0),  # below the smallest value: 0
        (0.0, 38, 0.0),
        (0.0, 39, 1e-9),  # it starts again above 0.95 of the budget
        (0.0, 100, 1e-9),
    ],
)
def test_one_update(before: float, kept: int, after: float) -> None:
    one = controller(BUDGET)
    steps(one, 1, scores(LENGTH, [kept]))
    one.lambda_S = torch.tensor([before])
    one.kept_KS = torch.where(one.last_KS > 0, float(kept), 0.0)
    one.penalty([scores(LENGTH, [kept])])
    one.end_step(64)
    assert one.report()["kept"] == [[kept]]
    assert one.report()["lambda"][0][0] == pytest.approx(after, rel=1e-6)


@pytest.mark.parametrize("every", [4, 32])
def test_whole_trajectories(every: int) -> None:
    many = [110] * 70 * every
    falling = [BUDGET * 2 - n // every for n in range(80 * every)]
    short = [39] * 10 * every + [0] * 35 * every + [45] * 5 * every + [39] * 4 * every
    counts = [*many, *falling, *short]
    heads = [counts, counts[::-1], counts[every * 60 :] + counts[: every * 60]]
    one = controller(BUDGET, sparsity_update_every=every)
    rules = [Rule(every) for _ in heads]
    seen = set()
    for step, kept in enumerate(zip(*heads, strict=True), start=1):
        one.penalty([scores(LENGTH, list(kept))])
        one.end_step(step)
        expected = [rule.step(count) for rule, count in zip(rules, kept, strict=True)]
        assert one.lambda_S is not None
        assert one.lambda_S.tolist() == pytest.approx(expected, rel=1e-4), step
        seen.update(expected)
    assert {0.0, 1e-9, 1.0} <= seen


@pytest.mark.parametrize(
    ("shared", "average"),
    [
        ("head", lambda kept_LH: kept_LH),
        ("layer", lambda kept_LH: kept_LH.mean(1, keepdim=True).expand(2, 2)),
        ("all", lambda kept_LH: kept_LH.mean().expand(2, 2)),
    ],
)
def test_lambda_may_be_shared_by_a_layer_or_by_all(
    shared: str, average: Callable[[Tensor], Tensor]
) -> None:
    one = controller(BUDGET, BUDGET, sparsity_update_every=4, lambda_shared=shared)
    counts = torch.tensor([[[90, 20], [41, 10]], [[0, 50], [45, 39]], [[60, 60], [60, 60]]])
    rules = [[Rule(4), Rule(4)], [Rule(4), Rule(4)]]
    seen = set()
    for step in range(1, 181):
        kept_LH = counts[(step - 1) // 60]
        one.penalty([scores(LENGTH, kept_H.tolist()) for kept_H in kept_LH])
        one.end_step(step)
        # the moving average is linear: that of the mean is the mean of those
        expected = [
            [rule.step(kept) for rule, kept in zip(row, kept_H, strict=True)]
            for row, kept_H in zip(rules, average(kept_LH.double()).tolist(), strict=True)
        ]
        for found, weights in zip(one.report()["lambda"], expected, strict=True):
            assert found == pytest.approx(weights, rel=1e-4)
        seen.add(len({weight for row in expected for weight in row}))
    assert max(seen) == {"head": 4, "layer": 2, "all": 1}[shared]


def test_ranks_and_micro_batches_count_as_one_joint_batch() -> None:
    torch.manual_seed(0)
    options = {"sparsity_update_every": 2, "sparsity_lambda_min": 1e-3}
    joint, micro, left, right = (controller(12, 12, **options) for _ in range(4))
    for step in range(1, 41):
        noise = torch.randn(2, 4, 30, 3) - 0.02 * step * torch.arange(3)
        joint.penalty([{"score_BTH": score_BTH} for score_BTH in noise])
        for half in noise.split(2, 1):
            micro.penalty([{"score_BTH": score_BTH} for score_BTH in half])
        for rank, half in zip((left, right), noise.split(2, 1), strict=True):
            rank.penalty([{"score_BTH": score_BTH} for score_BTH in half])
        assert left._step_KCS is not None
        assert right._step_KCS is not None
        mean = (left._step_KCS + right._step_KCS) / 2
        for one in (joint, micro):
            one.end_step(step)
        for rank in (left, right):
            rank.end_step(step, lambda _sums, mean=mean: mean)
        assert joint.report() == micro.report() == left.report() == right.report()
    assert len(set(joint.report()["lambda"][0])) > 1
