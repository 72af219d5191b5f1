import math

import pytest
import torch
from sparsity_stub import controller as _controller
from sparsity_stub import scores as _scores
from sparsity_stub import steps as _steps
from torch import nn


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
    penalty.backward()
    assert score_BTH.grad is not None
    expected = torch.zeros(12)
    expected[:4] = 0.5 / 10
    torch.testing.assert_close(score_BTH.grad[0, :, 0], expected)


def test_sequences_that_cannot_overflow_are_neither_counted_nor_pressed() -> None:
    controller = _controller(10)
    score_BTH = _scores(12, [12])["score_BTH"].requires_grad_()
    controller.penalty([{"score_BTH": score_BTH}])
    controller.lambda_S = torch.ones(1)
    penalty = controller.penalty([{"score_BTH": score_BTH}])
    assert penalty is not None
    penalty.backward()
    assert penalty == 0
    assert not score_BTH.grad.any()  # type: ignore[union-attr]
    controller.end_step(1)
    assert controller.report() == {}
    assert controller.penalty([_scores(13, [12])]) == pytest.approx(0.25)


def test_packed_documents_count_as_separate_sequences() -> None:
    lengths = [13, 6, 1, 40, 24, 2, 37]
    torch.manual_seed(0)
    parts = [torch.randn(1, length, 3) for length in lengths]
    row = torch.cat(parts, 1).requires_grad_()
    borders = torch.tensor([0, *lengths]).cumsum(0)
    packed, looped = _controller(5, target_kept=8), _controller(5, target_kept=8)
    for controller in (packed, looped):
        controller.penalty([_scores(9, [1, 1, 1])])
        controller.end_step(1)
        controller.lambda_S = torch.tensor([0.1, 0.2, 0.3])
    penalty = packed.penalty([{"score_BTH": row, "cu_seqlens": borders}])
    packed.end_step(32)
    expected, positions = torch.zeros(()), 0
    for part in parts:
        term = looped.penalty([{"score_BTH": part}])
        counted = part.shape[1] - 2 if part.shape[1] - 2 > 8 else 0
        assert term is not None
        assert (term == 0) == (counted == 0)
        expected, positions = expected + term * counted, positions + counted
    looped.end_step(32)
    assert penalty is not None
    torch.testing.assert_close(penalty, expected / positions)
    torch.testing.assert_close(packed.kept_KS, looped.kept_KS)
    assert packed.report()["lambda"] == looped.report()["lambda"]
    (grad,) = torch.autograd.grad(penalty, row)
    dropped = [range(int(end) - 2, int(end)) for end in borders[1:] if end > 1]
    assert not any(grad[0, list(positions)].any() for positions in dropped)
    assert grad[0, :11].any()
    assert not grad[0, 13:20].any()  # too short to overflow


def test_borders_of_documents_are_checked() -> None:
    row = {**_scores(12, [3]), "cu_seqlens": torch.tensor([0, 5, 11])}
    with pytest.raises(ValueError, match="cu_seqlens"):
        _controller(3).penalty([row])


def test_with_mixed_lengths_the_fullest_length_decides() -> None:
    controller = _controller(10, sparsity_update_every=2)
    for step in range(1, 41):
        length, kept = (16, 12) if step % 4 == 0 else (64, 3)
        controller.penalty([_scores(length, [kept])])
        controller.end_step(step)
    assert controller.report()["kept"][0][0] == pytest.approx(12, abs=0.01)
    assert controller.report()["lambda"][0][0] > 1e-9


def test_a_rare_length_does_not_lag_behind() -> None:
    controller = _controller(10)
    for step in range(1, 201):
        controller.penalty([_scores(64, [12 if step > 2 else 60])])
        if step in (2, 200):
            controller.penalty([_scores(256, [12 if step > 2 else 250])])
        controller.end_step(step)
    assert controller.report()["kept"][0][0] == pytest.approx(12, abs=0.01)


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
    _steps(controller, 11, _scores(64, [60]))
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
    uncapped = _controller(None, sparsity_update_every=1)
    assert uncapped.targets == [math.inf]
    _steps(uncapped, 3, _scores(64, [60]))
    assert uncapped.lambda_S == 0
    assert uncapped.report() == {}


def test_state_survives_as_tensors() -> None:
    options: dict[str, object] = {"sparsity_update_every": 2, "sparsity_lambda_min": 1e-3}
    one, other = _controller(6, 6, **options), _controller(6, 6, **options)
    aux = [_scores(32, [20, 2]), _scores(32, [9, 30])]
    _steps(one, 7, *aux)
    other.load_state_tensors(one.state_tensors())
    for controller in (one, other):
        controller.penalty(aux)
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


def test_the_router_starts_and_thaws_at_its_parts_of_the_run() -> None:
    # In floating point, 0.29 * 100 and 0.57 * 100 are a little below 29 and 57.
    controller = _controller(4, steps=100, router_start=0.29, router_freeze=0.57)
    (layer,) = controller.layers
    for step in range(1, 101):
        controller.begin_step(step)
        assert layer.router_on == (step > 29)
        layer.scorer(torch.ones(1)).backward()
        controller.drop_frozen(step)
        assert (layer.scorer.weight.grad is not None) == (step > 57)
