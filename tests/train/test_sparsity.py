import math

import pytest
import torch
from torch import Tensor, nn

from forgetmenot.train.options import Options
from forgetmenot.train.sparsity import SparsityController


class Layer(nn.Module):
    def __init__(self, budget: int | None, margin: int = 2) -> None:
        super().__init__()
        self.budget = budget
        self.receptive_margin = margin


def _controller(*budgets: int | None, **options: object) -> SparsityController:
    model = nn.Sequential(*(Layer(budget) for budget in budgets), nn.Linear(1, 1))
    return SparsityController(model, Options(**options))  # type: ignore[arg-type]


def _scores(length: int, kept: list[int], value: float = 0.25) -> dict[str, Tensor]:
    """Scores [1, T, H] whose head h keeps the first `kept[h]` positions."""
    score_BTH = torch.full((1, length, len(kept)), -value)
    for head, count in enumerate(kept):
        score_BTH[:, :count, head] = value
    return {"score_BTH": score_BTH}


def _hand_rule(kept: list[float], budget: float, length: int, every: int) -> list[float]:
    """The rule written out for one head: lambda after every step."""
    average, weight, history = float(length), 0.0, []
    for step, count in enumerate(kept, start=1):
        average += (count - average) * 2 / (1 + every / 2)
        if step % every == 0:
            if average >= budget:
                weight *= 1.5
            elif average <= 0.95 * budget:
                weight /= 2
            weight = min(weight, 1.0)
            if weight < 1e-9:
                weight = 0.0
            if weight == 0 and average > 0.95 * budget:
                weight = 1e-9
        history.append(weight)
    return history


def test_lambda_follows_the_rule_written_by_hand() -> None:
    every, budget, length = 4, 20, 64
    counts = [60] * 150 + [5] * 100 + [19] * 50 + [0] * 80 + [40] * 40
    expected = _hand_rule([float(count) for count in counts], budget, length, every)
    assert max(expected) > 1e-4
    assert 0.0 in expected[10:]
    assert 1e-9 in expected
    controller = _controller(budget, sparsity_update_every=every)
    for step, (count, weight) in enumerate(zip(counts, expected, strict=True), start=1):
        controller.penalty([_scores(length, [count])])
        controller.end_step(step)
        found = controller.report()["lambda"][0][0]
        assert found == pytest.approx(weight, rel=1e-4), step


def test_lambda_stops_at_its_largest_value() -> None:
    controller = _controller(4, sparsity_update_every=1, sparsity_lambda_min=0.3)
    for step in range(1, 9):
        controller.penalty([_scores(32, [30])])
        controller.end_step(step)
    assert controller.report()["lambda"] == [[1.0]]


def test_the_penalty_is_the_mean_of_weighted_positive_scores_without_the_margin() -> None:
    controller = _controller(3, 5)
    aux = [_scores(12, [4, 12], 0.25), {}, _scores(12, [0, 6], 0.5)]
    assert controller.penalty(aux) == 0  # no pressure before the first update
    controller.lambda_S = torch.tensor([1.0, 2.0, 3.0, 4.0])
    first = (1.0 * 4 * 0.25 + 2.0 * 10 * 0.25) / 20
    second = (0 + 4.0 * 6 * 0.5) / 20
    penalty = controller.penalty(aux)
    assert penalty is not None
    assert penalty.item() == pytest.approx((first + second) / 2)


def test_the_penalty_presses_kept_tokens_only() -> None:
    controller = _controller(3)
    score_BTH = _scores(12, [4])["score_BTH"].requires_grad_()
    controller.penalty([{"score_BTH": score_BTH}])
    controller.lambda_S = torch.tensor([0.5])
    penalty = controller.penalty([{"score_BTH": score_BTH}])
    assert penalty is not None
    (gradient_BTH,) = torch.autograd.grad(penalty, score_BTH)
    assert torch.equal(gradient_BTH[0, :, 0] > 0, torch.arange(12) < 4)


def test_kept_counts_ignore_the_last_margin_positions() -> None:
    controller = _controller(3, sparsity_update_every=6)
    controller.penalty([_scores(12, [12])])
    controller.end_step(1)
    rate = 2 / 4
    assert controller.report()["kept"][0][0] == pytest.approx(16 + (10 - 16) * rate)


def test_sequences_that_cannot_overflow_are_neither_counted_nor_pressed() -> None:
    controller = _controller(10)
    assert controller.penalty([_scores(12, [12])]) is None
    controller.end_step(32)
    assert controller.report() == {}
    assert controller.penalty([_scores(13, [12])]) is not None


def test_with_mixed_lengths_the_fullest_length_decides() -> None:
    controller = _controller(10, sparsity_update_every=2)
    for step in range(1, 41):
        length, kept = (16, 12) if step % 4 == 0 else (64, 3)
        controller.penalty([_scores(length, [kept])])
        controller.end_step(step)
    assert controller.report()["kept"][0][0] == pytest.approx(12, abs=0.01)
    assert controller.report()["lambda"][0][0] > 1e-9


def test_pressure_starts_at_its_part_of_the_run() -> None:
    controller = _controller(4, steps=100, sparsity_start=0.45, sparsity_update_every=5)
    first = 0
    for step in range(1, 101):
        controller.penalty([_scores(32, [30])])
        controller.end_step(step)
        if not first and controller.report()["lambda"][0][0] > 0:
            first = step
    assert first == 50


def test_a_collapsed_layer_is_released_at_once_and_can_come_back() -> None:
    options = {"sparsity_update_every": 1, "sparsity_lambda_min": 1e-2, "sparsity_release": 0.5}
    controller = _controller(10, **options)
    for step in range(1, 12):
        controller.penalty([_scores(64, [60])])
        controller.end_step(step)
    assert controller.report()["lambda"][0][0] > 0.1
    controller.penalty([_scores(64, [0])])
    controller.penalty([_scores(64, [0])])
    controller.end_step(12)
    assert controller.report()["lambda"] == [[0.0]]
    scorer = nn.Linear(1, 1)
    nn.init.constant_(scorer.bias, -1.0)
    optimizer = torch.optim.SGD(scorer.parameters(), lr=1.0)
    for step in range(13, 60):
        score_BTH = scorer(torch.ones(1, 64, 1)).sigmoid() - 0.5
        task = -score_BTH.mean()  # the task wants the tokens
        loss = task + controller.penalty([{"score_BTH": score_BTH}])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        controller.end_step(step)
        if bool((score_BTH > 0).all()):
            break
    assert bool((score_BTH > 0).all())


def test_the_target_replaces_the_budget_and_no_cap_means_no_control() -> None:
    assert _controller(10, target_kept=4).targets == [4]
    uncapped = _controller(None)
    assert uncapped.targets == [math.inf]
    assert uncapped.penalty([_scores(64, [60])]) is None


def test_state_survives_as_tensors() -> None:
    one = _controller(6, 6, sparsity_update_every=2, sparsity_lambda_min=1e-3)
    for step in range(1, 8):
        one.penalty([_scores(32, [20, 2]), _scores(32, [9, 30])])
        one.end_step(step)
    other = _controller(6, 6, sparsity_update_every=2, sparsity_lambda_min=1e-3)
    other.load_state_tensors(one.state_tensors())
    for controller in (one, other):
        controller.penalty([_scores(32, [20, 2]), _scores(32, [9, 30])])
        controller.end_step(8)
    assert one.report() == other.report()
    assert any(weight > 0 for head in one.report()["lambda"] for weight in head)


def test_a_layer_without_scores_is_an_error() -> None:
    with pytest.raises(ValueError, match="score_BTH of 1 layers"):
        _controller(6, 6).penalty([_scores(32, [1])])


def test_a_model_without_budgets_is_left_alone() -> None:
    controller = _controller()
    assert controller.penalty([{}]) is None
    controller.end_step(32)
    assert controller.report() == {}
    assert controller.state_tensors() == {}


def test_the_router_starts_at_its_part_of_the_run_and_pressure_not_before() -> None:
    controller = _controller(4, steps=100, router_start=0.5, sparsity_update_every=1)
    (layer,) = controller.layers
    for step in range(1, 101):
        controller.begin_step(step)
        assert layer.router_on == (step > 50)
        controller.penalty([_scores(64, [64])])
        controller.end_step(step)
        assert controller.lambda_S is not None
        assert (float(controller.lambda_S) > 0) == (step > 50)
