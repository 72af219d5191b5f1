"""The map of needles found: places, values and the grey of what was not measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from forgetmenot.report import results
from forgetmenot.report.figures import niah_heat_map, style
from forgetmenot.report.names import Names

CONFIG = {"variants": [{"name": "gdn", "label": "GDN"}, {"name": "lte", "label": "laLTE"}]}


@pytest.fixture
def found(tmp_path: Path) -> Any:
    """Function that makes the results of {(variant, seed): {(task, length, depth): accuracy}}."""

    def make(cells: dict[tuple[str, int], dict[tuple[str, int, int], float]]) -> results.Results:
        tasks = {}
        for (variant, seed), values in cells.items():
            folder = tmp_path / variant / str(seed)
            folder.mkdir(parents=True)
            metrics = [
                {"metric": "accuracy_at_depth", "value": value, "stderr": None, "n": 5}
                | {"at": dict(zip(("task", "length", "depth"), at, strict=True))}
                for at, value in values.items()
            ]
            (folder / "results.json").write_text(json.dumps({"metrics": metrics}))
            (folder / "manifest.json").write_text("{}")
            tasks[f"language/{variant}/seed{seed}/niah"] = str(folder)
        return results.load(tasks, {})

    return make


def test_cells_are_means_over_seeds_at_their_place(
    found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    finish = style.finish
    monkeypatch.setattr(style, "finish", lambda *rest: drawn.append(rest[0]) or finish(*rest))
    made = found(
        {
            ("gdn", 0): {("niah_1", 256, 0): 1.0, ("niah_1", 1024, 50): 0.0},
            ("gdn", 1): {("niah_1", 256, 0): 0.5},
            ("lte", 0): {("niah_2", 1024, 50): 0.25},
        }
    )
    figure = niah_heat_map.draw("language", CONFIG, "niah", made, Names())
    assert figure is not None
    assert "mean of up to 2 seeds" in figure.caption
    grid = np.array(drawn[0].axes[:4]).reshape(2, 2)
    assert [axes.get_title(loc="left") for axes in grid[0]] == ["S-NIAH-1", "S-NIAH-2"]
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["GDN\ndepth (%)", "laLTE\ndepth (%)"]

    def values(row: int, column: int) -> Any:
        return grid[row, column].collections[0].get_array().filled(np.nan).reshape(2, 2)

    nan = np.nan
    assert values(0, 0) == pytest.approx(np.array([[75, nan], [nan, 0]]), nan_ok=True)
    assert values(1, 1) == pytest.approx(np.array([[nan, nan], [nan, 25]]), nan_ok=True)
    assert np.isnan(values(1, 0)).all()
    lowest = grid[1, 0]
    assert [label.get_text() for label in lowest.get_xticklabels()] == ["256", "1024"]
    assert lowest.get_ylim() == (2, 0)


def test_without_depths_there_is_no_figure(found: Any) -> None:
    made = found({("gdn", 0): {("niah_1", 256, 0): 1.0}})
    assert niah_heat_map.draw("language", CONFIG, "perplexity", made, Names()) is None
    assert niah_heat_map.draw("recall", CONFIG, "niah", made, Names()) is None
