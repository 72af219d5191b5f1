"""The single seeds' values stand beside every mean over seeds."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from forgetmenot.report import claims, html, names, render, results, seeds, tables, verdicts
from forgetmenot.report.build import build
from forgetmenot.report.spec import Claim, Column, Table


def grid_of(spec: dict[str, Any], **changes: Any) -> tables.Grid:
    values = {**spec["tables"][0], **changes}
    table = Table(**{**values, "columns": [Column(**c) for c in values["columns"]]})
    return tables.build(table, spec["studies"], results.load(spec["results"], spec["trains"]))


def details(text: str) -> list[list[str]]:
    """The cells of the rows below "Single seeds"."""
    found = re.search(r'<details class="seeds">.*?</details>', text, re.S)
    assert found is not None
    rows = re.findall(r"<tr>(.*?)</tr>", found[0], re.S)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in rows]


def test_the_page_has_each_seeds_value_as_the_evaluator_wrote_it(
    write_results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = write_results({"gdn": 0.3, "gdn_attn": 0.9, "gdn_lte": 0.6})
    build(spec, {}, tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    rows = {(row[0], row[1]): row[2:] for row in details(text)[2:]}
    assert set(rows) == {(label, s) for label in ("GDN", "GDN+Attn", "laLTE") for s in "01"}
    for variant, label in (("gdn", "GDN"), ("gdn_lte", "laLTE")):
        for seed in (0, 1):
            path = Path(spec["results"][f"recall/{variant}/seed{seed}/recall"]) / "results.json"
            stored = [entry["value"] for entry in json.loads(path.read_text())["metrics"]]
            assert rows[label, str(seed)] == [f"{100 * value:.2f}" for value in stored]
    assert "<script" not in text


def test_a_mean_of_the_seeds_in_csv_is_the_value(write_results: Any) -> None:
    grid = grid_of(write_results({"gdn": 0.3, "gdn_lte": 0.6}, seeds=(0, 3)))
    lines = list(csv.DictReader(io.StringIO(render.csv_text(grid))))
    for line in lines:
        pairs = [entry.split("=") for entry in line["by_seed"].split(";")]
        assert [seed for seed, _ in pairs] == ["0", "3"]
        mean = sum(float(value) for _, value in pairs) / 2
        assert mean == pytest.approx(float(line["value"]), abs=1e-12)


def test_a_seed_without_a_value_has_an_empty_cell(write_results: Any) -> None:
    spec = write_results({"gdn": 0.3, "gdn_lte": 0.6})
    path = Path(spec["results"]["recall/gdn/seed1/recall"]) / "results.json"
    stored = json.loads(path.read_text())
    stored["metrics"] = stored["metrics"][:1]  # pairs 4 alone
    path.write_text(json.dumps(stored))
    rows = details(html.table(grid_of(spec)))
    (cells,) = (row[2:] for row in rows if row[:2] == ["GDN", "1"])
    assert cells[1] == tables.EMPTY != cells[0]


def test_one_seed_or_numbers_of_the_code_have_nothing_to_show(write_results: Any) -> None:
    assert seeds.columns(grid_of(write_results({"gdn": 0.3}, seeds=(0,)))) == []
    columns = [{"metric": name, "header": name} for name in ("parameters", "final_loss")]
    spec = write_results({"gdn": 0.3}, seeds=(0, 1))
    path = Path(spec["trains"]["recall/gdn/seed1"]) / "curve.jsonl"
    path.write_text(path.read_text().replace('"loss": 1.0', '"loss": 2.0'))
    grid = grid_of(spec, task="train", columns=columns)
    assert seeds.columns(grid) == [1]  # the loss differs, the parameters cannot


def test_a_claim_has_its_effect_in_each_seed(write_results: Any) -> None:
    spec = write_results({"gdn": 0.3, "gdn_lte": 0.6})
    claim = Claim("lte", "t", "s", "recall", "recall", "accuracy", "gdn_lte", "gdn")
    found = results.load(spec["results"], spec["trains"])
    (verdict,) = claims.judge([claim], found, names.of(spec))
    comparison = verdict.parts[0].comparison
    assert comparison is not None
    assert sum(comparison.by_seed) / 2 == pytest.approx(comparison.effect)
    (line,) = verdicts.lines(verdict, names.of(spec))
    assert line.by_seed == "seeds: " + ", ".join(f"{x:+.3g}" for x in comparison.by_seed)
