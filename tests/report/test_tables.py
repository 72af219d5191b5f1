"""Tables: the numbers in every form are those of the results."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from forgetmenot.report import context, render, results, tables
from forgetmenot.report.spec import Column, Table


def grid_of(spec: dict[str, Any], **changes: Any) -> tables.Grid:
    values = {**spec["tables"][0], **changes}
    table = Table(**{**values, "columns": [Column(**c) for c in values["columns"]]})
    return tables.build(table, spec["studies"], results.load(spec["results"], spec["trains"]))


def test_numbers_equal_the_inputs_in_every_form(write_results: Any) -> None:
    spec = write_results({"gdn": 0.3, "gdn_attn": 0.9, "gdn_lte": 0.6})
    grid = grid_of(spec)
    lines = list(csv.DictReader(io.StringIO(render.csv_text(grid))))
    assert len(lines) == 6
    for line in lines:
        folders = [Path(text).parent for text in line["manifests"].split(";")]
        pairs = int(line["at"].removeprefix("pairs="))
        stored = [
            entry["value"]
            for folder in folders
            for entry in json.loads((folder / "results.json").read_text())["metrics"]
            if entry["at"] == {"pairs": pairs}
        ]
        assert len(stored) == 2
        assert float(line["value"]) == pytest.approx(sum(stored) / 2, abs=1e-12)
        assert float(line["low"]) < float(line["value"]) < float(line["high"])
        assert (line["n"], line["seeds"]) == ("400", "2")
        assert line["interval"] == "bootstrap over seeds and samples"
        shown = f"{100 * float(line['value']):.2f}"
        interval = f"[{100 * float(line['low']):.2f}, {100 * float(line['high']):.2f}]"
        for text in (render.markdown(grid), render.latex(grid)):
            starts = (f"| {line['label']} |", f"{line['label']} &")
            (row,) = (r for r in text.splitlines() if r.startswith(starts))
            assert shown in row
            assert interval in row


def test_best_is_marked_only_beyond_all_other_intervals(write_results: Any) -> None:
    clear = grid_of(write_results({"gdn": 0.3, "gdn_attn": 0.9, "gdn_lte": 0.6}))
    assert [[cell.best for cell in line] for line in clear.cells] == [
        [False, False],
        [True, True],
        [False, False],
    ]
    assert "**90.00** [" in render.markdown(clear)
    close = grid_of(write_results({"gdn": 0.3, "gdn_attn": 0.61, "gdn_lte": 0.6}))
    assert not any(cell.best for line in close.cells for cell in line)


def test_a_missing_result_is_an_empty_cell_and_a_note(write_results: Any) -> None:
    spec = write_results({"gdn": 0.3, "gdn_attn": 0.9})
    (Path(spec["results"]["recall/gdn/seed1/recall"]) / "results.json").unlink()
    found = results.load(spec["results"], spec["trains"])
    assert len(found.missing) == 1
    assert "recall/gdn/seed1/recall" in found.missing[0]
    assert "results.json does not exist" in found.missing[0]
    grid = grid_of(spec)
    text = render.markdown(grid)
    assert "| laLTE | - | - |" in text
    assert text.count("laLTE: no result of recall/gdn_lte/recall.") == 1
    assert "GDN: 1 of 2 seeds for recall/accuracy, pairs 4." in text


def test_a_damaged_result_is_named(write_results: Any) -> None:
    spec = write_results({"gdn": 0.3})
    path = Path(spec["results"]["recall/gdn/seed0/recall"]) / "results.json"
    path.write_text("{broken")
    (message,) = results.load(spec["results"], spec["trains"]).missing
    assert str(path.parent) in message
    assert "JSONDecodeError" in message


def test_a_number_that_is_no_mean_of_samples_uses_its_standard_error(write_results: Any) -> None:
    spec = write_results({"gdn": 0.3}, seeds=(0,))
    path = Path(spec["results"]["recall/gdn/seed0/recall"]) / "results.json"
    entry = {"metric": "accuracy", "at": {"pairs": 4}, "value": 12.0, "stderr": 0.5, "n": 200}
    path.write_text(json.dumps({"task": "recall", "metrics": [entry]}))
    estimate = grid_of(spec).cells[0][0].estimate
    assert estimate is not None
    assert estimate.method == "normal, standard error of samples"
    assert (estimate.low, estimate.high) == pytest.approx((12 - 0.97998, 12 + 0.97998), abs=1e-5)


def test_training_numbers_come_from_curve_and_weights(write_results: Any) -> None:
    spec = write_results({"gdn_lte": 0.3}, seeds=(0,))
    names = ["parameters", "steps", "tokens", "seconds", "tokens_per_second", "final_loss"]
    columns = [{"metric": name, "header": name} for name in [*names, "kept_tokens"]]
    grid = grid_of(spec, task="train", columns=columns)
    line = next(c for row, c in zip(grid.rows, grid.cells, strict=True) if row.variant == "gdn_lte")
    values = [cell.estimate.value if cell.estimate else None for cell in line]
    assert values[:5] == [12, 100, 1000, 10.0, 100.0]
    assert values[5] == pytest.approx(3 - 2 * 95.5 / 100)
    assert values[6] == pytest.approx((35 + 30 + 20 + 20) / 4)


def test_split_gives_each_value_rows_and_a_best_of_its_own(write_results: Any) -> None:
    spec = write_results({"gdn": 0.3, "gdn_attn": 0.9})
    columns = [{"metric": "accuracy", "header": "accuracy", "better": "higher"}]
    grid = grid_of(spec, split="pairs", split_label="pairs:", columns=columns)
    assert [(row.label, row.group) for row in grid.rows[:4]] == [
        ("GDN", "pairs: 4"),
        ("GDN+Attn", "pairs: 4"),
        ("laLTE", "pairs: 4"),
        ("GDN", "pairs: 8"),
    ]
    assert [line[0].best for line in grid.cells] == [False, True, False, False, True, False]


def test_notes_state_scale_seeds_tokens_deviations_and_the_missing_paper_table(
    write_results: Any,
) -> None:
    spec = write_results({"gdn": 0.3})
    found = results.load(spec["results"], spec["trains"])
    lines = " ".join(context.notes("lte", ["recall"], spec, found))
    assert "Scale smoke" in lines
    assert "seeds 0, 1; 0.001M training tokens a model" in lines
    assert "Deviation: a stand-in <corpus> & more" in lines
    assert "The paper's own table is not available to this project." in lines
    prosg = " ".join(context.notes("prosg", ["recall"], spec, found))
    assert "a from-scratch implementation of the method as the abstract describes it" in prosg


def test_latex_escapes_every_special_character() -> None:
    assert render.escape(r"50% & $x_1$ #2 {a} \b ~c ^d") == (
        r"50\% \& \$x\_1\$ \#2 \{a\} \textbackslash{}b \textasciitilde{}c \textasciicircum{}d"
    )


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"columns": []}, "columns"), ({"columns": [Column("a", "b")]}, "columns")],
)
def test_a_bad_table_names_the_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        Table(**{"title": "t", "paper": "lte", **changes})
