import pytest

from forgetmenot.train.options import Options
from forgetmenot.train.schedule import learning_rate


@pytest.mark.parametrize(
    ("step", "rate"),
    [(1, 0.1), (5, 0.5), (10, 1.0), (60, 0.55), (35, 0.1 + 0.9 * 0.8535533905932737), (110, 0.1)],
)
def test_linear_warm_up_then_cosine_to_a_tenth(step: int, rate: float) -> None:
    options = Options(steps=110, warmup_steps=10, learning_rate=2e-3)
    assert learning_rate(step, options) == pytest.approx(2e-3 * rate, rel=1e-12)


def test_without_warm_up_the_last_step_is_the_lowest() -> None:
    options = Options(steps=4, learning_rate=1.0, min_lr_ratio=0.0)
    rates = [learning_rate(step, options) for step in range(1, 5)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.0, abs=1e-15)
