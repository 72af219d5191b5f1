"""Intervals: reproducible, of the right width, and honest at the ends."""

import numpy as np
import pytest

from forgetmenot.report.stats import (
    Contrast,
    Estimate,
    Scores,
    holm,
    mean_of_samples,
    mean_of_values,
    paired,
    slope,
    unpaired,
)


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def scores(values: list[float]) -> Scores:
    return {str(index): (value, 1) for index, value in enumerate(values)}


def normal(seed: int, count: int, mean: float = 0.0) -> Scores:
    return scores(list(np.random.default_rng(seed).normal(mean, 1.0, count)))


def test_bootstrap_is_reproducible() -> None:
    assert mean_of_samples([normal(0, 100)]) == mean_of_samples([normal(0, 100)])


def test_one_seed_gives_the_textbook_interval() -> None:
    estimate = mean_of_samples([normal(0, 400)])
    values = np.array([value for value, _ in normal(0, 400).values()])
    half = 1.96 * values.std(ddof=1) / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert estimate.method == "bootstrap over samples"


def test_seeds_that_differ_widen_the_interval() -> None:
    same = mean_of_samples([normal(0, 200), normal(0, 200)])
    apart = mean_of_samples([normal(0, 200), normal(0, 200, mean=2.0)])
    assert width(apart) > 3 * width(same)
    # The seeds saw the same samples, so a second equal seed is no new information.
    once = mean_of_samples([normal(0, 200)])
    assert width(same) == pytest.approx(width(once), rel=0.1)


def test_scores_of_one_cluster_stay_together() -> None:
    alone = mean_of_samples([scores([0.0, 1.0] * 50)])
    # Four copies of each score in one cluster add nothing.
    copies = {name: (4 * value, 4) for name, (value, _) in scores([0.0, 1.0] * 50).items()}
    clustered = mean_of_samples([copies])
    assert (clustered.low, clustered.high) == (alone.low, alone.high)
    assert clustered.n == 400


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_scores_all_alike_do_not_claim_certainty(value: float) -> None:
    estimate = mean_of_samples([scores([value] * 50)])
    assert width(estimate) == pytest.approx(3.8415 / 53.8415, rel=1e-3)
    assert value in (estimate.low, estimate.high)


def test_ready_numbers() -> None:
    assert mean_of_values([2.0], [None], 5).low is None
    one = mean_of_values([2.0], [0.5], 5)
    assert one.high == pytest.approx(2 + 1.959964 * 0.5)
    two = mean_of_values([1.0, 3.0], [0.5, 0.5], 10)
    assert two.high == pytest.approx(2 + 1.959964 * np.sqrt(1.0 + 0.25))


def test_paired_uses_the_pairing() -> None:
    base = normal(0, 100)
    better = {name: (value + 0.05, 1) for name, (value, _) in base.items()}
    comparison = paired([[better], [base]], 0.0)
    assert comparison.effect == pytest.approx(0.05)
    assert comparison.p < 0.001
    assert comparison.high - comparison.low < 1e-9


def test_paired_of_equal_sides_is_no_difference() -> None:
    comparison = paired([[normal(0, 50)], [normal(0, 50)]], 0.0)
    assert (comparison.effect, comparison.p) == (0.0, 1.0)


def test_paired_refuses_sides_without_common_samples() -> None:
    with pytest.raises(ValueError, match="no sample in common"):
        paired([[{"a": (1.0, 1)}], [{"b": (1.0, 1)}]], 0.0)


def test_unpaired_is_the_normal_test() -> None:
    comparison = unpaired([[0.5], [0.4]], [[0.03], [0.04]], 0.0, 10)
    assert comparison.effect == pytest.approx(0.1)
    assert comparison.p == pytest.approx(0.0455, abs=1e-4)


def test_slope_is_that_of_the_line() -> None:
    x = [0.0, 1.0, 5.0]
    assert slope(x) @ (3 + 2 * np.array(x)) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="two places or more"):
        slope([4.0])


@pytest.mark.parametrize("contrast", [Contrast((1.0, -1.0)), Contrast((-1.0, 1.0), relative=True)])
def test_the_gradient_is_that_of_the_value(contrast: Contrast) -> None:
    means = np.array([0.7, 0.4])
    for n in range(2):
        step = np.eye(2)[n] * 1e-6
        numeric = (contrast.value(means + step) - contrast.value(means - step)) / 2e-6
        assert contrast.gradient(means)[n] == pytest.approx(float(numeric), rel=1e-6)


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="value is 0"):
        unpaired([[0.5], [0.0]], [[0.1], [0.1]], 0.0, 9, Contrast((1.0, -1.0), relative=True))


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
