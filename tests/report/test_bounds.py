"""Intervals end where a metric's values do, where that depends on the results too."""

from pathlib import Path
from typing import Any

import pytest

from forgetmenot.config_files import check
from forgetmenot.errors import UserError
from forgetmenot.report import bounds
from forgetmenot.report.results import Result
from forgetmenot.report.spec import Column
from forgetmenot.report.stats import Estimate

AT = {"control": "none", "kind": "fact", "facts": 2}
CHANCE = 0.1


def result(seed: int, capture: float, *later: float) -> Result:
    """Captures and accuracies at distances 64, 128, ... with the retention that follows."""

    def entry(metric: str, value: float, **more: Any) -> dict[str, Any]:
        return {"metric": metric, "at": {**AT, **more}, "value": value, "stderr": 0.1, "n": 9}

    metrics = [entry("capture", capture)]
    for step, accuracy in enumerate((capture, *later)):
        distance = 64 * step
        share = (accuracy - CHANCE) / (capture - CHANCE)
        metrics.append(entry("accuracy", accuracy, distance=distance))
        metrics.append(entry("retention", share, distance=distance))
    return Result("prompts", "gdn", seed, "prosg_retention", Path(), metrics, {})


def cut(bound: Any, sources: list[Result], **at: Any) -> tuple[float | None, float | None]:
    column = Column("aufc", "AUFC", "prosg_retention", bounds=bound)
    wide = Estimate(0.9, -9.0, 2000.0, 9, len(sources), "normal")
    found = bounds.cut(wide, column, sources, {**AT, **at})
    return found.low, found.high


def test_a_share_of_the_capture_ends_where_accuracies_of_0_and_1_do() -> None:
    low, high = cut("shares", [result(0, 0.4, 0.4, 0.25), result(1, 0.9, 0.95, 0.5)])
    assert low == pytest.approx((-0.1 / 0.3 - 0.1 / 0.8) / 2)
    assert high == pytest.approx((0.9 / 0.3 + 0.9 / 0.8) / 2)
    assert high > 1  # a model may be right more often later than right after the prompt


def test_nothing_forgotten_of_a_full_capture_ends_at_1() -> None:
    seeds = [result(0, 1.0, 1.0), result(1, 1.0, 0.5)]  # the second tells what chance is
    assert cut("shares", seeds, distance=64)[1] == pytest.approx(1)


def test_without_any_forgetting_chance_is_not_known_and_nothing_is_cut() -> None:
    assert cut("shares", [result(0, 0.4, 0.4)]) == (-9.0, 2000.0)
    assert cut("shares", []) == (-9.0, 2000.0)


def test_a_half_distance_ends_at_the_longest_distance_asked() -> None:
    assert cut("distances", [result(0, 0.9, 0.8, 0.7)]) == (0, 128)
    assert cut("distances", []) == (0, 2000.0)


def test_a_bound_that_is_no_bound_is_refused() -> None:
    with pytest.raises(UserError, match="bounds"):
        check(Column, {"metric": "a", "header": "b", "bounds": "share"}, "x.yaml")
