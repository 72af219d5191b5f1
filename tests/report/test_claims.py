"""Claims: right verdicts on constructed cases."""

import json
from pathlib import Path
from typing import Any

import pytest

from forgetmenot.report import claims, results
from forgetmenot.report.claims import Verdict
from forgetmenot.report.spec import Claim


def judge(spec: dict[str, Any], *changes: dict[str, Any]) -> list[Verdict]:
    base: dict[str, Any] = {
        "paper": "lte",
        "text": "laLTE beats GDN",
        "source": "a test",
        "study": "recall",
        "task": "recall",
        "metric": "accuracy",
        "better": "gdn_lte",
        "worse": "gdn",
    }
    made = [Claim(**{**base, "id": f"claim{n}", **change}) for n, change in enumerate(changes)]
    return claims.judge(made, results.load(spec["results"], spec["trains"]))


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [(0.9, 0.5, "supported"), (0.5, 0.9, "contradicted"), (0.6, 0.6, "undecided")],
)
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_win_loss_and_tie(
    write_results: Any, better: float, worse: float, verdict: str, seeds: tuple[int, ...]
) -> None:
    spec = write_results({"gdn_lte": better, "gdn": worse}, seeds=seeds)
    (found,) = judge(spec, {})
    assert found.verdict == verdict
    assert found.comparison is not None
    # Pooled over 4 and 8 pairs; the second cell's accuracy is a 1.1th of the first's.
    expected = (better - worse) * (1 + 1 / 1.1) / 2
    assert found.comparison.effect == pytest.approx(expected, abs=0.01)
    assert found.comparison.low <= found.comparison.effect <= found.comparison.high


def test_lower_is_better_turns_the_sides(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.2, "gdn": 0.8})
    (found,) = judge(spec, {"higher_is_better": False})
    assert found.verdict == "supported"
    assert found.comparison is not None
    assert found.comparison.effect > 0.5


def test_margin(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.7, "gdn": 0.6})
    behind, far = judge(spec, {"margin": -0.1}, {"margin": 0.5})
    assert behind.verdict == "supported"
    assert far.verdict == "contradicted"


def test_axis_values_are_respected(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.9, "gdn": 0.5})
    (found,) = judge(spec, {"at": {"pairs": [8]}})
    assert found.comparison is not None
    assert found.comparison.samples == 200


def test_equality_needs_the_whole_interval_within_the_margin(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.5, "gdn": 0.5}, count=400, seeds=(0,))
    near, tight = judge(spec, {"kind": "equal", "margin": 0.2}, {"kind": "equal", "margin": 1e-3})
    assert near.verdict == "supported"
    assert near.p_adjusted is None
    assert tight.verdict == "undecided"
    apart = write_results({"gdn_lte": 0.9, "gdn": 0.3}, seeds=(0,))
    assert judge(apart, {"kind": "equal", "margin": 0.1})[0].verdict == "contradicted"


def test_an_unlearned_task_leaves_the_claim_undecided(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.3, "gdn": 0.1, "gdn_attn": 0.3})
    (found,) = judge(spec, {"control": "gdn_attn", "control_above": 0.5})
    assert found.verdict == "undecided"
    assert "the task was not learned" in found.reason
    learned, _ = judge(spec, {"control": "gdn_attn", "control_above": 0.2}, {})
    assert learned.verdict == "supported"


def test_holm_is_within_a_paper(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.9, "gdn": 0.5}, seeds=(0,))
    found = judge(spec, {}, {}, {"paper": "prosg"})
    raw = [verdict.comparison.p for verdict in found if verdict.comparison]
    assert [v.p_adjusted for v in found] == pytest.approx([2 * raw[0], 2 * raw[1], raw[2]])


def test_a_metric_without_samples_is_tested_on_standard_errors(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.5, "gdn": 0.5}, seeds=(0,))
    for variant, value in (("gdn_lte", 0.8), ("gdn", 0.5)):
        path = Path(spec["results"][f"recall/{variant}/seed0/recall"]) / "results.json"
        entry = {"metric": "aufc", "at": {}, "value": value, "stderr": 0.03, "n": 50}
        path.write_text(json.dumps({"task": "recall", "metrics": [entry]}))
    (found,) = judge(spec, {"metric": "aufc"})
    assert found.verdict == "supported"
    assert found.comparison is not None
    assert found.comparison.effect == pytest.approx(0.3)


def test_a_missing_result_is_named_not_judged(write_results: Any, tmp_path: Path) -> None:
    spec = write_results({"gdn": 0.5})
    (found,) = verdicts = judge(spec, {})
    assert (found.verdict, found.comparison) == ("no result", None)
    assert "recall/gdn_lte/recall has no result" in found.reason
    claims.write(verdicts, tmp_path)
    assert "no result" in (tmp_path / "claims.md").read_text()
    (stored,) = json.loads((tmp_path / "claims.json").read_text())
    assert stored["verdict"] == "no result"


def test_a_bad_claim_names_the_key() -> None:
    values = {"paper": "lte", "text": "", "source": "", "study": "", "task": "", "metric": "a"}
    with pytest.raises(ValueError, match="worse"):
        Claim(**values, better="gdn", worse="gdn")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="margin"):
        Claim(**values, better="gdn", worse="lte", kind="equal")  # type: ignore[arg-type]
