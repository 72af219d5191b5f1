"""The figure of rivals over session memory: when it is drawn, and what its points are."""

from pathlib import Path
from typing import Any

import pytest

from forgetmenot.report.figures import prosg_memory
from forgetmenot.report.names import Names
from forgetmenot.report.results import Result, Results

STUDY = {"variants": [{"name": "rwkv4_ft", "label": "FT"}, {"name": "rwkv4_prosg"}]}


def entry(metric: str, at: dict[str, Any], value: float, n: int) -> dict[str, Any]:
    stderr = 0.01 if n > 1 else None
    return {"metric": metric, "at": at, "value": value, "stderr": stderr, "n": n}


def result(variant: str, floats: dict[str, int], right: float) -> Result:
    """Accuracies `right` and `right` + 0.2 at two distances with 4 facts; 0 with 1 fact."""
    metrics = []
    for control, count in floats.items():
        for facts in (1, 4):
            at = {"facts": facts, "control": control}
            metrics.append(entry("session_floats", at, count * facts, 1))
            for distance in (0, 64):
                value = right + distance / 320 if facts == 4 else 0.0
                kind = {**at, "kind": "fact", "distance": distance}
                metrics.append(entry("accuracy", kind, value, 20))
                metrics.append(entry("accuracy", {**kind, "kind": "persona"}, 1.0, 20))
    return Result("prompts", variant, 0, "rivals", Path("nowhere"), metrics, {})


def results(*found: Result) -> Results:
    return Results({(r.study, r.variant, r.task): [r] for r in found})


TUNED = result("rwkv4_ft", {"none": 10, "ttt-16": 300, "ttt-4": 300, "refresh": 20}, 0.5)
PLAIN = result("rwkv4_prosg", {"none": 90, "refresh": 100}, 0.4)


def test_only_models_that_were_tuned_on_their_prompts_have_a_panel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    panels = []

    def keep(axes: Any, points: Any, controls: Any, others: Any) -> None:
        panels.append((points, controls, others))

    monkeypatch.setattr(prosg_memory, "_panel", keep)
    monkeypatch.setattr(prosg_memory.style, "legend", lambda figure: None)
    assert prosg_memory.draw("prompts", STUDY, "rivals", results(TUNED, PLAIN), Names()) is not None
    ((points, controls, others),) = panels
    assert controls == ["none", "refresh", "ttt-4", "ttt-16"]
    assert {name: floats for name, (floats, _) in points.items()} == {
        "none": 40,
        "refresh": 80,
        "ttt-4": 1200,
        "ttt-16": 1200,
    }
    assert points["none"][1].value == pytest.approx(0.6)  # the mean over distances
    ((floats, right),) = others
    assert (floats, right.value) == (360, pytest.approx(0.5))


def test_a_figure_is_drawn_from_real_panels() -> None:
    drawn = prosg_memory.draw("prompts", STUDY, "rivals", results(TUNED, PLAIN), Names())
    assert drawn is not None
    assert drawn.name == "prosg_memory_prompts_rivals"
    assert drawn.png[:4] == b"\x89PNG"


def test_nothing_is_drawn_without_tuned_models() -> None:
    assert prosg_memory.draw("prompts", STUDY, "rivals", results(PLAIN), Names()) is None
    assert prosg_memory.draw("prompts", STUDY, "other", results(TUNED, PLAIN), Names()) is None
