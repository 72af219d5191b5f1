"""Curves of a mixture's sources: panels of their own, where the curve tells them apart."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from forgetmenot.report import names, results
from forgetmenot.report.figures import source_curves, style


@pytest.fixture
def figure(write_results: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Function that draws runs of two seeds whose lines got more values, and returns the figure."""
    drawn: list[Figure] = []
    finish = style.finish
    monkeypatch.setattr(style, "finish", lambda *rest: drawn.append(rest[0]) or finish(*rest))

    def draw(more: Any) -> Figure | None:
        spec = write_results({"gdn": 0.3})
        for seed in (0, 1):
            path = Path(spec["trains"][f"recall/gdn/seed{seed}"]) / "curve.jsonl"
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            changed = [json.dumps({**line, **more(line["step"], seed)}) for line in lines]
            path.write_text("\n".join(changed))
        found = results.load(spec["results"], spec["trains"])
        study = spec["studies"]["recall"]
        source_curves.draw("recall", study, found, {"gdn": 0, "gdn_attn": 1, "gdn_lte": 2},
                           names.of(spec))  # fmt: skip
        return drawn.pop() if drawn else None

    return draw


def test_each_source_has_a_panel_of_loss_and_one_of_accuracy(figure: Any) -> None:
    def more(step: int, seed: int) -> dict[str, float]:
        # every other line has no batch of records
        other = {"loss/records-8k": 1.0, "accuracy/records-8k": 0.25} if step % 2 else {}
        return {"loss/niah-8k": 2.0 + seed, "accuracy/niah-8k": 0.5, **other}

    made = figure(more)
    assert [axes.get_title(loc="left") for axes in made.axes] == [
        "niah-8k: loss",
        "niah-8k: accuracy (%)",
        "records-8k: loss",
        "records-8k: accuracy (%)",
    ]
    lines = [axes.lines[0] for axes in made.axes]
    assert [np.unique(np.round(line.get_ydata(), 9)).tolist() for line in lines] == [
        [2.5],
        [50.0],
        [1.0],
        [25.0],
    ]
    assert lines[0].get_label() == "GDN"


def test_a_study_of_one_source_has_no_such_figure(figure: Any) -> None:
    assert figure(lambda step, seed: {}) is None
