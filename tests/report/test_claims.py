"""Claims: right verdicts on constructed cases."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from forgetmenot.report import claims, names, results, verdicts
from forgetmenot.report.claims import Part, Verdict
from forgetmenot.report.names import Names
from forgetmenot.report.spec import Claim

NO_RESULT = '{} has no result of {} in the study "Recall"'


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
    return claims.judge(
        made, results.load(spec["results"], spec["trains"], [16, 4096]), names.of(spec)
    )


def only(spec: dict[str, Any], **changes: Any) -> Part:
    (verdict,) = judge(spec, changes)
    (part,) = verdict.parts
    assert verdict.verdict == part.verdict
    return part


def store(spec: dict[str, Any], variant: str, entries: list[dict[str, Any]]) -> None:
    """Replace the results of a variant's seed 0 by ready numbers."""
    path = Path(spec["results"][f"recall/{variant}/seed0/recall"]) / "results.json"
    whole = [{"at": {}, "n": 50, **entry} for entry in entries]
    path.write_text(json.dumps({"task": "recall", "metrics": whole}))


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [(0.9, 0.5, "supported"), (0.5, 0.9, "contradicted"), (0.6, 0.6, "undecided")],
)
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_win_loss_and_tie(
    write_results: Any, better: float, worse: float, verdict: str, seeds: tuple[int, ...]
) -> None:
    part = only(write_results({"gdn_lte": better, "gdn": worse}, seeds=seeds))
    assert part.verdict == verdict
    assert part.comparison is not None
    # Pooled over 4 and 8 pairs; the second cell's accuracy is a 1.1th of the first's.
    expected = (better - worse) * (1 + 1 / 1.1) / 2
    assert part.comparison.effect == pytest.approx(expected, abs=0.01)
    assert part.comparison.low <= part.comparison.effect <= part.comparison.high


def test_a_claim_of_several_models_needs_all_of_them(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.9, "gdn_attn": 0.9, "gdn": 0.4})
    both, mixed, wrong = judge(
        spec,
        {"better": ["gdn_lte", "gdn_attn"]},
        {"better": "gdn_lte", "worse": ["gdn", "gdn_attn"]},
        {"better": "gdn", "worse": ["gdn_lte", "gdn_attn"]},
    )
    assert [(part.better, part.worse) for part in both.parts] == [
        ("gdn_lte", "gdn"),
        ("gdn_attn", "gdn"),
    ]
    assert [v.verdict for v in (both, mixed, wrong)] == ["supported", "undecided", "contradicted"]
    assert [part.verdict for part in mixed.parts] == ["supported", "undecided"]


def test_what_was_not_run_is_named_and_keeps_a_claim_from_being_supported(
    write_results: Any, tmp_path: Path
) -> None:
    spec = write_results({"gdn_lte": 0.9, "gdn": 0.4})
    found = judge(spec, {"better": ["gdn_lte", "gdn_nsa"]}, {"better": "gdn_nsa"})
    assert [v.verdict for v in found] == ["undecided", "not run"]
    assert found[0].parts[1].reason == NO_RESULT.format("gdn_nsa", "multi-query recall")
    verdicts.write(found, Names({"gdn_lte": "laLTE"}), tmp_path)
    text = (tmp_path / "claims.md").read_text()
    assert "| claim0: laLTE beats GDN | **undecided** | laLTE over gdn: supported |" in text
    assert "- claim1, gdn_nsa over gdn: gdn_nsa has no result of" in text
    stored = json.loads((tmp_path / "claims.json").read_text())
    assert [part["verdict"] for part in stored[0]["parts"]] == ["supported", "not run"]
    assert len(stored[0]["parts"][0]["manifests"]) == 4


def test_a_variant_that_only_a_claim_names_has_its_label(
    write_results: Any, tmp_path: Path
) -> None:
    spec = write_results({"gdn_lte": 0.9, "gdn": 0.4})
    spec["claim_labels"] = {"gdn_nsa": "laNSA", "gdn": "never used"}
    known = names.of(spec)
    assert (known.variant("gdn_nsa"), known.variant("gdn")) == ("laNSA", "GDN")
    verdicts.write(judge(spec, {"better": "gdn_nsa"}), known, tmp_path)
    text = (tmp_path / "claims.md").read_text()
    assert f"laNSA over GDN: {NO_RESULT.format('laNSA', 'multi-query recall')}." in text
    assert not re.search(r"gdn|recall/recall", text)


def test_lower_is_better_turns_the_sides(write_results: Any) -> None:
    part = only(write_results({"gdn_lte": 0.2, "gdn": 0.8}), higher_is_better=False)
    assert part.verdict == "supported"
    assert part.comparison is not None
    assert part.comparison.effect > 0.5


def test_margin(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.7, "gdn": 0.6})
    behind, far = judge(spec, {"margin": -0.1}, {"margin": 0.5})
    assert (behind.verdict, far.verdict) == ("supported", "contradicted")


def test_axis_values_are_respected(write_results: Any) -> None:
    part = only(write_results({"gdn_lte": 0.9, "gdn": 0.5}), at={"pairs": [8]})
    assert part.comparison is not None
    assert part.comparison.samples == 200


def test_equality_needs_the_whole_interval_within_the_margin(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.5, "gdn": 0.5}, count=400, seeds=(0,))
    near, tight = judge(spec, {"kind": "equal", "margin": 0.2}, {"kind": "equal", "margin": 1e-3})
    assert (near.verdict, near.parts[0].p_adjusted) == ("supported", None)
    assert tight.verdict == "undecided"
    apart = write_results({"gdn_lte": 0.9, "gdn": 0.3}, seeds=(0,))
    assert only(apart, kind="equal", margin=0.1).verdict == "contradicted"


def test_an_unlearned_task_leaves_the_claim_undecided(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.3, "gdn": 0.1, "gdn_attn": 0.3})
    part = only(spec, control="gdn_attn", control_above=0.5)
    assert part.verdict == "undecided"
    assert "the task was not learned" in part.reason
    assert only(spec, control="gdn_attn", control_above=0.2).verdict == "supported"


def test_a_side_that_never_learned_has_not_forgotten(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.9, "gdn": 0.04})
    part = only(spec, worse_above=0.1)
    assert part.verdict == "undecided"
    assert re.search(r"GDN reached 0\.0\d+ at best anywhere \(needed: 0\.1\)", part.reason)
    assert only(spec, worse_above=0.01).verdict == "supported"


def test_sides_that_differ_in_what_must_match_leave_the_claim_undecided(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.5, "gdn": 0.5}, seeds=(0,))
    for variant, aufc, capture in (("gdn_lte", 0.8, 0.95), ("gdn", 0.5, 0.80)):
        numbers = {"aufc": aufc, "capture": capture}
        store(
            spec, variant, [{"metric": k, "value": v, "stderr": 0.03} for k, v in numbers.items()]
        )
    near = only(spec, metric="aufc", matched="capture", matched_within=0.2)
    assert near.verdict == "supported"
    far = only(spec, metric="aufc", matched="capture", matched_within=0.1)
    assert far.verdict == "undecided"
    assert "capture differs: 0.95 and 0.8" in far.reason


def test_holm_is_within_a_paper(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.9, "gdn": 0.5}, seeds=(0,))
    found = judge(spec, {}, {}, {"paper": "prosg"})
    parts = [part for verdict in found for part in verdict.parts]
    raw = [part.comparison.p for part in parts if part.comparison]
    assert [p.p_adjusted for p in parts] == pytest.approx([2 * raw[0], 2 * raw[1], raw[2]])


def test_a_metric_without_samples_is_tested_on_standard_errors(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.5, "gdn": 0.5}, seeds=(0,))
    for variant, value in (("gdn_lte", 0.8), ("gdn", 0.5)):
        store(spec, variant, [{"metric": "aufc", "value": value, "stderr": 0.03}])
    part = only(spec, metric="aufc")
    assert part.verdict == "supported"
    assert part.comparison is not None
    assert part.comparison.effect == pytest.approx(0.3)
    # As a share of the other side: 60 % more, error by the delta method.
    share = only(spec, metric="aufc", relative=True).comparison
    assert share is not None
    error = 0.03 * math.hypot(1 / 0.5, 0.8 / 0.5**2)
    assert share.effect == pytest.approx(0.6)
    assert share.high - share.effect == pytest.approx(1.96 * error, rel=1e-3)


def write_forgetting(spec: dict[str, Any], variant: str, shares: dict[int, float]) -> None:
    folder = Path(spec["results"][f"recall/{variant}/seed0/recall"])
    lines, metrics = [], []
    for distance, share in shares.items():
        at = {"distance": distance}
        metrics.append({"metric": "accuracy", "at": at, "value": share, "stderr": 0.05, "n": 100})
        for n in range(100):
            lines.append({"id": n, "at": at, "accuracy": float(n < round(100 * share))})
    (folder / "results.json").write_text(json.dumps({"task": "recall", "metrics": metrics}))
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_trend_is_the_slope_of_the_gain(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.5, "gdn": 0.5}, seeds=(0,))
    write_forgetting(spec, "gdn_lte", {0: 0.9, 1: 0.9, 3: 0.9})
    write_forgetting(spec, "gdn", {0: 0.9, 1: 0.7, 3: 0.5})
    part = only(spec, trend="distance")
    assert part.verdict == "supported"
    assert part.comparison is not None
    assert part.comparison.effect == pytest.approx(0.2)  # a doubling of 1 + distance
    assert only(spec, better="gdn", worse="gdn_lte", trend="distance").verdict == "contradicted"
    write_forgetting(spec, "gdn", {0: 0.5})
    assert only(spec, trend="distance").reason == "a trend needs two places or more; found 1"


def test_places_that_differ_between_scales(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.5, "gdn": 0.5}, seeds=(0,))
    # The models' window is 8 tokens, the budget 40 (see conftest.py).
    for variant, far in (("gdn_lte", 0.9), ("gdn", 0.2)):
        write_forgetting(spec, variant, {4: 0.5, 8: 0.5, 60: far, 99: far})
    part = only(spec, at={"distance": "beyond-window"})
    assert part.comparison is not None
    assert part.comparison.effect == pytest.approx(0.7)
    assert only(spec, at={"distance": "longest"}).verdict == "supported"
    same = only(
        spec, better="gdn", worse=[], at={"distance": "longest"},
        worse_at={"distance": "first-full"}, kind="equal", margin=0.1,
    )  # fmt: skip
    assert same.verdict == "supported"
    for variant in ("gdn_lte", "gdn"):
        write_forgetting(spec, variant, {4: 0.5, 8: 0.5})
    part = only(spec, at={"distance": "beyond-window"})
    assert (part.verdict, part.reason) == (
        "not run",
        "no distance beyond the largest window (8 tokens)",
    )
    assert "no two values of distance" in only(spec, at={"distance": "first-full"}).reason


def test_computed_costs_are_exact(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.5, "gdn": 0.5, "gdn_attn": 0.5})
    growth = {
        "task": "train", "metric": "state_bytes", "relative": True, "higher_is_better": False,
        "at": {"context": 4096}, "worse_at": {"context": 16}, "margin": -0.1, "worse": [],
    }  # fmt: skip
    recurrent, attention = judge(
        spec, {**growth, "better": "gdn"}, {**growth, "better": "gdn_attn"}
    )
    assert (recurrent.verdict, attention.verdict) == ("supported", "contradicted")
    comparison = recurrent.parts[0].comparison
    assert comparison is not None
    assert (comparison.effect, comparison.low, comparison.high) == (0, 0, 0)


def test_a_bad_claim_names_the_key() -> None:
    values: dict[str, Any] = {
        "paper": "lte", "text": "", "source": "", "study": "", "task": "", "metric": "a",
        "better": "gdn", "worse": "lte",
    }  # fmt: skip
    for change, key in (
        ({"worse": "gdn"}, "worse"),
        ({"worse": []}, "worse"),
        ({"kind": "equal"}, "margin"),
        ({"matched": "capture"}, "matched_within"),
        ({"relative": True, "trend": "distance"}, "relative"),
    ):
        with pytest.raises(ValueError, match=key):
            Claim(**{**values, **change})


def test_a_needle_is_as_far_as_its_depth_says(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.5, "gdn": 0.5}, seeds=(0,))
    for variant, far in (("gdn_lte", 1.0), ("gdn", 0.0)):
        folder = Path(spec["results"][f"recall/{variant}/seed0/recall"])
        lines = [
            {"id": f"{depth}-{n}", "at": {"length": 16, "depth": depth}, "tokens": 12,
             "accuracy": far if depth < 30 else 0.5}
            for depth in (20, 30, 90) for n in range(30)
        ]  # fmt: skip
        (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # Of 12 tokens, 80 % are beyond the window of 8 and 70 % are within it.
    part = only(spec, at={"distance": "beyond-window"})
    assert part.comparison is not None
    assert (part.comparison.effect, part.comparison.samples) == (1.0, 30)


def test_the_first_task_that_was_scored_is_taken(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.9, "gdn": 0.4})
    assert only(spec, task=["hub", "recall"]).verdict == "supported"
    assert only(spec, task=["hub", "mirror"]).reason == NO_RESULT.format("GDN", "hub")
