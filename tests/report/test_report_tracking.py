"""What a report leaves in MLflow, and where its pages lead."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forgetmenot.files import write_text
from forgetmenot.tracking import describe, ui
from forgetmenot.tracking.rebuild import manifests


def test_a_report_keeps_its_page_tables_and_figures_and_a_job_its_manifest(tmp_path: Path) -> None:
    names = ["index.html", "claims.md", "tables/recall.csv", "tables/recall.html", "figures/a.png"]
    for name in ["manifest.json", *names, "claims.json"]:
        write_text(tmp_path / "report" / name, "x")
    found = {path.name: place for path, place in describe.artifacts(tmp_path / "report")}
    assert found == {
        "manifest.json": "",
        "index.html": "",
        "claims.md": "",
        "recall.csv": "tables",
        "recall.html": "tables",
        "a.png": "figures",
    }
    assert [path.name for path, _ in describe.artifacts(tmp_path)] == ["manifest.json"]


def test_published_copies_are_no_runs_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("reports/smoke", "reports/published/smoke/results/smoke/a", "results/smoke/a"):
        write_text(Path(folder, "manifest.json"), "{}")
    assert [str(path.parent) for path in manifests(None)] == ["reports/smoke", "results/smoke/a"]


def test_the_printed_addresses_are_those_of_experiments_with_training_runs() -> None:
    class Client:
        def search_experiments(self, order_by: list[str]) -> list[Any]:
            names = ("forgetmenot/smoke/lte", "forgetmenot/smoke/report")
            return [
                SimpleNamespace(name=name, experiment_id=str(n)) for n, name in enumerate(names)
            ]

        def search_runs(self, ids: list[str], query: str, max_results: int) -> list[str]:
            assert query == "tags.stage = 'train'"
            return ["run"] if ids == ["0"] else []

    ((name, address),) = ui.curves(Client(), "http://127.0.0.1:5000")  # type: ignore[arg-type]
    assert name == "smoke/lte"
    assert address == (
        "http://127.0.0.1:5000/#/experiments/0/runs?compareRunsMode=CHART"
        "&searchFilter=tags.stage%20%3D%20%27train%27"
    )
