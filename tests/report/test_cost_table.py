"""The table of costs, and variants whose weights were not trained here."""

import json
from pathlib import Path
from typing import Any

import pytest

from forgetmenot import cost
from forgetmenot.config_files import check, read_yaml
from forgetmenot.errors import UserError
from forgetmenot.report import context, render, results, tables, training
from forgetmenot.report.build import build
from forgetmenot.report.spec import Table

CONFIG = Path(__file__).parents[2] / "workflow" / "config"
ALL = {"gdn": 0.3, "gdn_attn": 0.9, "gdn_lte": 0.6}


def table(name: str) -> Table:
    path = CONFIG / "tables" / f"{name}.yaml"
    return check(Table, {**read_yaml(path), "name": name}, str(path))


def grid_of(name: str, spec: dict[str, Any]) -> tables.Grid:
    chosen = table(name)
    found = results.load(spec["results"], spec["trains"], chosen.contexts)
    return tables.build(chosen, spec["studies"], found)


def test_numbers_are_those_of_the_code_in_the_order_of_the_hierarchy(write_results: Any) -> None:
    spec = write_results(ALL)
    grid = grid_of("cost", spec)
    assert [row.variant for row in grid.rows] == ["gdn", "gdn_lte", "gdn_attn"]
    assert [line[0].text for line in grid.cells] == ["(a)", "(a) + (b)", "(a) + (d)"]
    folder = Path(spec["trains"]["recall/gdn_lte/seed0"])
    expected = cost.of(read_yaml(folder / "config.json"), table("cost").contexts)
    values = [cell.estimate.value for cell in grid.cells[1][1:] if cell.estimate]
    costs = [*expected.state_bytes.values(), *expected.flops_per_token.values()]
    assert values == [12, *costs]  # parameters are counted in the weights' file
    text = render.markdown(grid)
    assert "| laLTE | (a) + (b) | 12 |" in text
    assert "[" not in text.split("- Computed")[0]  # exact numbers have no interval
    assert "recall,gdn_lte,laLTE,train,kind,,(a) + (b)," in render.csv_text(grid)
    assert not any("seed" in note for note in grid.notes)


def test_it_is_the_first_table_of_every_scale_with_models_of_that_paper() -> None:
    for path in (CONFIG / "scales").glob("*.yaml"):
        scale = read_yaml(path)
        if any(study["paper"] == "lte" for study in scale["studies"].values()):
            assert scale["tables"][0] == "cost", path


def test_contexts_are_whole_numbers() -> None:
    columns = [{"metric": "state_bytes", "header": "", "axis": "context"}]
    values = {"title": "t", "paper": "lte", "task": "train", "columns": columns}
    with pytest.raises(UserError, match=r"x.yaml.*values: found None; allowed with axis context"):
        check(Table, values, "x.yaml")
    columns = [{"metric": "seconds", "header": ""}]
    with pytest.raises(UserError, match="order: found 'kind'; allowed: seconds"):
        check(Table, {**values, "columns": columns, "order": "kind"}, "x.yaml")


def test_fetched_weights_have_costs_and_results_but_no_training(write_results: Any) -> None:
    spec = write_results(ALL, fetched=("gdn_lte",))
    costs = grid_of("cost", spec)
    assert all(cell.sources for line in costs.cells for cell in line)
    training = grid_of("training_lte", spec)
    line = dict(zip([row.variant for row in training.rows], training.cells, strict=True))["gdn_lte"]
    assert [cell.estimate is not None for cell in line] == [True, *[False] * (len(line) - 1)]
    assert training.notes.count("laLTE: not trained here; its weights were imported.") == 1
    found = results.load(spec["results"], spec["trains"])
    assert found.missing == []
    notes = " ".join(context.notes("lte", ["recall"], spec, found))
    assert "training tokens a model" in notes  # of the others


def test_a_report_of_fetched_weights_alone(write_results: Any, tmp_path: Path) -> None:
    spec = write_results(ALL, fetched=tuple(ALL))
    study = spec["studies"]["recall"]
    study |= {"data": [], "train": {}, "released": {"gdn": {"repository": "a/b", "revision": "c0"}}}
    build(spec, {}, tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert "Weights of GDN, trained by others: repository a/b, revision c0" in text
    assert "weights imported, nothing trained here" in text
    assert not list((tmp_path / "report" / "figures").glob("learning_curves*"))


def test_a_training_run_without_its_curve_is_missing(write_results: Any) -> None:
    spec = write_results(ALL)
    Path(spec["trains"]["recall/gdn/seed0"], "curve.jsonl").unlink()
    (message,) = results.load(spec["results"], spec["trains"]).missing
    assert "curve.jsonl does not exist" in message


def test_utilisation_is_three_forward_passes_over_the_peak(write_results: Any) -> None:
    spec = write_results(ALL, seeds=(0,))
    folder = Path(spec["trains"]["recall/gdn_lte/seed0"])
    stored = json.loads((folder / "manifest.json").read_text())
    asked = {"train": {"precision": "bf16"}, "data": [{"options": {"contexts": [32, 64]}}]}
    stored |= {"device": "NVIDIA H100 80GB HBM3", "spec": asked}
    found = {m["metric"]: m["value"] for m in training.metrics(folder, stored)}
    flops = cost.of(read_yaml(folder / "config.json"), [32]).flops_per_token[32]
    assert found["mfu"] == pytest.approx(3 * flops * 100 / 989.5e12)
    for change in ({"device": "cpu"}, {"spec": {**asked, "train": {"precision": "fp32"}}}):
        names = {m["metric"] for m in training.metrics(folder, {**stored, **change})}
        assert "mfu" not in names
        assert "tokens_per_second" in names
