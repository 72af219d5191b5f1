"""The map of what heads kept of the needles."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from forgetmenot.report.figures import niah_audit, style
from forgetmenot.report.names import Names
from forgetmenot.report.results import Result


def result(folder: Path) -> Result:
    return Result("language", "gdn_lte", 3, "niah_audit", folder, [], {})


def group(task: str, length: int, answer: str, *shares: list[float]) -> dict[str, Any]:
    layers = {str(2 * n + 1): heads for n, heads in enumerate(shares)}
    return {"task": task, "length": length, "answer": answer, "n": 4, "layers": layers}


def test_panels_are_tasks_by_answers_at_the_longest_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    finish = style.finish
    monkeypatch.setattr(style, "finish", lambda *rest: drawn.append(rest[0]) or finish(*rest))
    groups = [
        group("niah_1", 256, "right", [1.0, 1.0], [1.0, 1.0]),
        group("niah_1", 512, "right", [0.75, 0.5], [0.25, 1.0]),
        group("niah_2", 512, "wrong", [0.0, 0.1], [0.2, 0.3]),
    ]
    (tmp_path / "audit.json").write_text(json.dumps({"groups": groups}))
    figure = niah_audit.draw(result(tmp_path), Names())
    assert figure is not None
    assert "at 512 tokens, seed 3" in figure.caption
    grid = np.array(drawn[0].axes[:4]).reshape(2, 2)
    titles = [axes.get_title(loc="left") for axes in grid.ravel()]
    assert titles == [
        "S-NIAH-1, right (4)",
        "S-NIAH-1, wrong (0)",
        "S-NIAH-2, right (0)",
        "S-NIAH-2, wrong (4)",
    ]
    values = [
        axes.collections[0].get_array().tolist() if axes.collections else None
        for axes in grid.ravel()
    ]
    assert values[1] is values[2] is None
    assert np.array(values[0]) == pytest.approx(np.array([[75, 50], [25, 100]]))
    assert np.array(values[3]) == pytest.approx(np.array([[0, 10], [20, 30]]))
    assert [label.get_text() for label in grid[1, 0].get_yticklabels()] == ["1", "3"]


def test_without_an_audit_there_is_no_figure(tmp_path: Path) -> None:
    assert niah_audit.draw(result(tmp_path), Names()) is None
    (tmp_path / "audit.json").write_text(json.dumps({"groups": []}))
    assert niah_audit.draw(result(tmp_path), Names()) is None
