"""Capture, retention, AUFC and half-distance on curves with known answers."""

import numpy as np
import pytest

from forgetmenot.evaluate.retention import (
    Curve,
    area_under_forgetting_curve,
    clustered_slope,
    half_distance,
    retention,
)

DISTANCES = np.array([0, 32, 64, 128])


def curve(right: list[list[float]], asked: list[float], chance: float = 0.0) -> Curve:
    right_PD = np.array(right)
    return Curve(np.array([0, 32]), right_PD, right_PD * right_PD[:, :1], np.array(asked), chance)


def test_retention_is_one_at_zero_and_zero_at_chance() -> None:
    found = retention(np.array([0.75, 0.5, 0.25]), 0.25)
    assert found.tolist() == [1.0, 0.5, 0.0]


def test_retention_of_nothing_is_undefined() -> None:
    assert np.isnan(retention(np.array([0.25, 0.25]), 0.25)).all()
    assert np.isnan(retention(np.array([0.1, 0.9]), 0.25)).all()


def test_aufc_is_the_mean_over_log_distance() -> None:
    assert area_under_forgetting_curve(DISTANCES, np.array([1.0, 1.0, 1.0, 1.0])) == 1.0
    # log2 D = 5, 6, 7: trapezoids (1 + 0.5) / 2 and (0.5 + 0) / 2 over two octaves
    assert area_under_forgetting_curve(DISTANCES, np.array([1.0, 1.0, 0.5, 0.0])) == 0.5
    uneven = np.array([0, 1, 2, 16])
    expected = (1 * (0.8 + 0.4) / 2 + 3 * (0.4 + 0.2) / 2) / 4
    found = area_under_forgetting_curve(uneven, np.array([1.0, 0.8, 0.4, 0.2]))
    assert found == pytest.approx(expected)
    assert area_under_forgetting_curve(np.array([0, 8]), np.array([1.0, 0.3])) == 0.3


def test_half_distance_is_interpolated_in_log_distance() -> None:
    assert half_distance(DISTANCES, np.array([1.0, 1.0, 0.5, 0.0])) == pytest.approx(64)
    between = half_distance(np.array([0, 31, 63]), np.array([1.0, 0.75, 0.25]))
    assert between == pytest.approx(2**5.5 - 1)
    first = half_distance(np.array([0, 3]), np.array([1.0, 0.0]))
    assert first == pytest.approx(1.0)  # half of log2(1 + 3) = 2


def test_half_distance_is_the_first_crossing() -> None:
    assert half_distance(np.array([0, 1, 3, 7]), np.array([1.0, 0.5, 0.9, 0.1])) == pytest.approx(1)


def test_half_distance_of_what_is_never_lost_is_the_longest_distance() -> None:
    assert half_distance(DISTANCES, np.array([1.0, 0.9, 0.8, 0.7])) == pytest.approx(128)
    assert np.isnan(half_distance(DISTANCES, np.full(4, np.nan)))


def test_rows_are_independent() -> None:
    rows = np.array([[1.0, 1.0, 0.5, 0.0], [1.0, 0.9, 0.8, 0.7]])
    assert half_distance(DISTANCES, rows).tolist() == pytest.approx([64, 128])
    assert area_under_forgetting_curve(DISTANCES, rows).tolist() == pytest.approx([0.5, 0.8])


def test_retention_given_capture_counts_only_what_was_right_at_zero() -> None:
    # Prompt 0: right at 0, lost. Prompt 1: wrong at 0, right later by luck. Prompt 2: kept.
    found = curve([[1, 0], [0, 1], [1, 1]], [1, 1, 1]).estimates()
    assert found["capture"][0] == pytest.approx(2 / 3)
    assert found["retention"][0].tolist() == pytest.approx([1.0, 1.0])
    assert found["retention_given_capture"][0].tolist() == pytest.approx([1.0, 0.5])


def test_prompts_without_the_kind_do_not_count() -> None:
    some = curve([[2, 1], [0, 0]], [2, 0]).estimates()
    assert some["capture"][0] == 1.0
    assert some["retention"][0].tolist() == [1.0, 0.5]
    assert some["capture"][1] == 0.0  # every resample holds the one prompt


def test_bootstrap_error_of_capture_is_the_binomial_one() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random((400, 2)) < [0.8, 0.4]).astype(float)
    estimates = curve(right.tolist(), [1.0] * 400, 1 / 16).estimates()
    share = right[:, 0].mean()
    expected = np.sqrt(share * (1 - share) / 400)
    assert estimates["capture"][1] == pytest.approx(expected, rel=0.1)
    again = curve(right.tolist(), [1.0] * 400, 1 / 16).estimates()
    assert {k: v[1].tolist() for k, v in again.items()} == {
        k: v[1].tolist() for k, v in estimates.items()
    }


def test_chance_accuracy_leaves_derived_values_undefined() -> None:
    found = curve([[0, 1], [0, 1]], [1, 1], 0.25).estimates()
    assert found["capture"][0] == 0.0
    for name in ("retention", "retention_given_capture", "aufc", "half_distance"):
        assert np.isnan(found[name][0]).all()
        assert np.isnan(found[name][1]).all()


def test_slope_is_that_of_least_squares_with_clustered_errors() -> None:
    rng = np.random.default_rng(0)
    slopes, errors = [], []
    for _ in range(300):
        shared = 0.3 * rng.standard_normal((40, 1))  # all points of a cluster deviate together
        x = rng.random((40, 5)) + np.arange(40)[:, None] % 4
        y = 0.5 * x + shared + 0.1 * rng.standard_normal((40, 5))
        fitted = clustered_slope([np.stack(pair, 1) for pair in zip(x, y, strict=True)])
        assert fitted is not None
        assert fitted[0] == pytest.approx(np.polyfit(x.ravel(), y.ravel(), 1)[0])
        slopes.append(fitted[0])
        errors.append(fitted[1])
    assert np.mean(slopes) == pytest.approx(0.5, abs=0.01)
    assert np.mean(errors) == pytest.approx(np.std(slopes), rel=0.15)


def test_slope_of_one_cluster_or_place_is_undefined() -> None:
    points = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert clustered_slope([points]) is None
    assert clustered_slope([points[:1], points[:1]]) is None


def test_a_capture_within_noise_of_chance_gives_no_shares() -> None:
    # 3 of 20 right at distance 0, chance 0.1: above it, but by less than two standard errors
    few = curve([[1.0, 1.0]] * 3 + [[0.0, 0.0]] * 17, [1.0] * 20, chance=0.1).estimates()
    assert few["capture"][0] == pytest.approx(0.15)
    assert all(np.isnan(few[name][0]).all() for name in ("retention", "aufc", "half_distance"))
    many = curve([[1.0, 1.0]] * 12 + [[0.0, 0.0]] * 8, [1.0] * 20, chance=0.1).estimates()
    assert many["aufc"][0] == pytest.approx(1.0)
