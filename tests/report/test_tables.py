"""Tables: the numbers in every form are those of the results."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from forgetmenot.report import (
    context,
    estimate,
    html,
    latex,
    published,
    render,
    results,
    tables,
)
from forgetmenot.report.figures import frontier
from forgetmenot.report.spec import Column, Table
from forgetmenot.report.tables import Cell


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
        for text in (render.markdown(grid), latex.table(grid)):
            starts = (f"| {line['label']} |", f"{line['label']} &")
            (row,) = (r for r in text.splitlines() if r.startswith(starts))
            assert shown in row
            assert interval in row


def marks_of(grid: tables.Grid, column: int = 0) -> dict[str, str]:
    pairs = zip(grid.rows, grid.cells, strict=True)
    return {row.variant: line[column].mark for row, line in pairs}


def test_best_and_second_are_marked_with_all_that_do_not_differ(write_results: Any) -> None:
    clear = grid_of(write_results({"gdn": 0.3, "gdn_attn": 0.9, "gdn_lte": 0.6}))
    assert marks_of(clear) == {"gdn": "", "gdn_attn": "best", "gdn_lte": "second"}
    assert "**90.00** [" in render.markdown(clear)
    assert "<u>60.00</u> [" in render.markdown(clear)
    assert r"\textbf{90.00}" in latex.table(clear)
    assert r"\underline{60.00}" in latex.table(clear)
    close = grid_of(write_results({"gdn": 0.3, "gdn_attn": 0.61, "gdn_lte": 0.6}))
    assert marks_of(close) == {"gdn": "second", "gdn_attn": "best", "gdn_lte": "best"}
    assert estimate.MARKS in close.notes
    same = grid_of(write_results({"gdn": 0.6, "gdn_attn": 0.61, "gdn_lte": 0.6}))
    assert set(marks_of(same).values()) == {""}
    assert estimate.MARKS not in same.notes
    lower = grid_of(
        write_results({"gdn": 0.3, "gdn_attn": 0.9, "gdn_lte": 0.6}),
        columns=[{"metric": "accuracy", "header": "", "axis": "pairs", "better": "lower"}],
    )
    assert marks_of(lower)["gdn"] == "best"


def test_a_pooled_column_is_the_mean_over_its_axis(write_results: Any) -> None:
    spec = write_results({"gdn": 0.3, "gdn_attn": 0.9, "gdn_lte": 0.6})
    column = {"metric": "accuracy", "header": "all", "pool": True, "better": "higher"}
    grid = grid_of(spec, columns=[column])
    number = grid.cells[0][0].estimate
    assert number is not None
    assert number.value == pytest.approx(0.3 * (1 + 1 / 1.1) / 2, abs=0.005)
    assert (number.n, number.method) == (800, "bootstrap over seeds and samples")
    assert marks_of(grid)["gdn_attn"] == "best"


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
    assert text.count('laLTE: no result of multi-query recall in the study "Recall".') == 1
    assert 'GDN: 1 of 2 seeds for "pairs: 4".' in text


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
    assert [line[0].mark for line in grid.cells] == ["", "best", "", "", "best", ""]


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
    assert latex.escape(r"50% & $x_1$ #2 {a} \b ~c ^d") == (
        r"50\% \& \$x\_1\$ \#2 \{a\} \textbackslash{}b \textasciitilde{}c \textasciicircum{}d"
    )


def test_what_was_skipped_or_scored_by_a_protocol_is_said(write_results: Any) -> None:
    spec = write_results({"gdn": 0.3, "gdn_attn": 0.9, "gdn_lte": 0.6}, seeds=(0,))
    for variant in ("gdn", "gdn_attn", "gdn_lte"):
        path = Path(spec["results"][f"recall/{variant}/seed0/recall"]) / "results.json"
        stored = json.loads(path.read_text())
        stored["about"] = {"protocol": "lm-eval-v1"}
        stored["skipped"] = [{"at": {"pairs": 16}, "reason": "its data are not here"}]
        path.write_text(json.dumps(stored))
    grid = grid_of(spec)
    assert [head.text for head in grid.heads] == ["pairs: 4", "pairs: 8", "pairs: 16"]
    assert {line[2].text for line in grid.cells} == {"skipped"}
    assert grid.notes.count("pairs: 16: skipped: its data are not here.") == 1
    assert "multi-query recall: protocol: lm-eval-v1." in grid.notes
    assert "| skipped |" in render.markdown(grid)


def _frontier_spec(write_results: Any) -> dict[str, Any]:
    spec: dict[str, Any] = write_results({"gdn": 0.3, "gdn_attn": 0.9, "gdn_lte": 0.6}, seeds=(0,))
    spec["tables"][0] |= {
        "frontier": ["size", "accuracy"],
        "columns": [
            {
                "metric": "size",
                "header": "state",
                "label": "state",
                "where": {"context": "longest"},
            },
            {"metric": "accuracy", "header": "right", "label": "right", "where": {"pairs": 8}},
        ],
    }
    for variant, size in (("gdn", 10), ("gdn_attn", 90), ("gdn_lte", 30)):
        path = Path(spec["results"][f"recall/{variant}/seed0/recall"]) / "results.json"
        stored = json.loads(path.read_text())
        for length in (2, 16):
            entry = {"metric": "size", "at": {"context": length}, "value": size * length}
            stored["metrics"].append({**entry, "stderr": None, "n": 1})
        path.write_text(json.dumps(stored))
    return spec


def test_a_frontier_is_drawn_from_the_cells_at_the_longest_context(write_results: Any) -> None:
    grid = grid_of(_frontier_spec(write_results))
    sizes = [line[0].estimate.value for line in grid.cells if line[0].estimate]
    assert sizes == [160, 1440, 480]
    drawn = frontier.draw(grid, {"gdn": 0, "gdn_attn": 1, "gdn_lte": 2})
    assert drawn is not None
    assert drawn.name == "frontier_recall"
    grid.cells = [[Cell(None, []) for _ in line] for line in grid.cells]
    assert frontier.draw(grid, {}) is None


def test_the_frontier_has_what_nothing_surpasses() -> None:
    points = [(1.0, 5.0), (2.0, 4.0), (2.0, 7.0), (3.0, 7.0), (4.0, 9.0)]
    assert frontier._frontier(points) == [(1.0, 5.0), (2.0, 7.0), (4.0, 9.0)]


def test_what_others_published_stands_apart_in_every_form(write_results: Any) -> None:
    grid = grid_of(write_results({"gdn": 0.3}))
    papers = {"p": {"title": "A & B", "tables": [
        {"name": "one", "title": "T", "source": "Table 2", "conditions": "1.3B, 100B tokens.",
         "header": ["model", "S1"], "rows": [["X", 97.4]]},
    ]}}  # fmt: skip
    grid.anchors, missing = published.anchors(["p.one", "p.two", "q"], papers)
    assert missing == [
        "reports/papers/p.yaml has no table two.",
        "reports/papers/q.yaml has no table at all.",
    ]
    for text, words in (
        (render.markdown(grid), "### Published by others"),
        (latex.table(grid), r"Published by others, not comparable with ours: T. Table 2. 1.3B"),
        (html.table(grid), '<div class="others">'),
    ):
        ours, _, theirs = text.partition(words)
        assert "97.4" in theirs
        assert "97.4" not in ours
    assert "97.4" not in render.csv_text(grid)


def test_latex_has_whole_rows_and_environments(write_results: Any) -> None:
    spec = write_results({"gdn": 0.3, "gdn_attn": 0.9})
    grid = grid_of(spec, title="50% of λ {1} \N{EN DASH} “all”", split="pairs")
    text = latex.table(grid)
    assert text.isascii()
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    open_: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            open_.append(name)
        else:
            assert open_.pop() == name
    assert open_ == []
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])  # type: ignore[index]
    rows = [
        line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line
    ]
    assert len(rows) == 1 + len(grid.rows)
    assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {columns}
    assert r"\input{recall}" in latex.document(["recall"])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"columns": []}, "columns"),
        ({"columns": [Column("a", "b")]}, "columns"),
        ({"columns": [Column("a", "b", "t", "x", pool=True)]}, "pool"),
        ({"columns": [Column("a", "b", "t")], "frontier": ["a"]}, "frontier"),
        ({"columns": [Column("a", "b", "t")], "frontier": ["a", "c"]}, "frontier"),
    ],
)
def test_a_bad_table_names_the_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        Table(**{"title": "t", "paper": "lte", **changes})


def test_intervals_end_where_the_metric_does(write_results: Any) -> None:
    spec = write_results({"gdn": 0.5})
    for seed, value in enumerate((0.05, 0.95)):  # one learned, one did not: a wide normal interval
        path = Path(spec["results"][f"recall/gdn/seed{seed}/recall"]) / "results.json"
        entry = {"metric": "capture", "at": {}, "value": value, "stderr": 0.01, "n": 50}
        path.write_text(json.dumps({"task": "recall", "metrics": [entry]}))
    column = {"metric": "capture", "header": "capture"}
    (cell,) = grid_of(spec, columns=[column]).cells[0]
    assert cell.estimate is not None
    assert cell.estimate.low is not None
    assert cell.estimate.low < 0
    (cell,) = grid_of(spec, columns=[column | {"bounds": [0, 1]}]).cells[0]
    assert cell.estimate is not None
    assert (cell.estimate.low, cell.estimate.high) == (0, 1)
    with pytest.raises(ValueError, match=r"bounds: found \[0\]"):
        Column(**column, bounds=[0])


def test_a_cut_interval_is_said_and_an_uncut_one_is_not(write_results: Any) -> None:
    spec = write_results({"gdn": 0.5})
    for seed, value in enumerate((0.2, 0.95)):
        path = Path(spec["results"][f"recall/gdn/seed{seed}/recall"]) / "results.json"
        entry = {"metric": "capture", "at": {}, "value": value, "stderr": 0.01, "n": 50}
        path.write_text(json.dumps({"task": "recall", "metrics": [entry]}))
    column = {"metric": "capture", "header": "capture (%)", "bounds": [0, 1]}
    note = 'Intervals are cut where the values of the metric end: "capture (%)".'
    assert note in grid_of(spec, columns=[column]).notes
    wide = grid_of(spec, columns=[column | {"bounds": [-9, 9]}]).notes
    assert not any("Intervals are cut" in line for line in wide)


def test_an_optional_column_that_nobody_has_is_left_out_and_named(write_results: Any) -> None:
    spec = write_results({"gdn": 0.3})
    accuracy = {"metric": "accuracy", "header": "right", "where": {"pairs": 4}, "optional": True}
    lacking = {"metric": "size", "header": "size (MiB) @", "axis": "context", "optional": True}
    grid = grid_of(spec, columns=[accuracy, lacking])
    assert [head.text for head in grid.heads] == ["right"]
    assert 'Columns left out, as no model here has them: "size (MiB)".' in grid.notes
    needed = grid_of(spec, columns=[accuracy, lacking | {"optional": False}])
    assert [head.text for head in needed.heads] == ["right", "size (MiB) @"]


def test_a_table_of_scored_models_alone_has_no_empty_rows(write_results: Any) -> None:
    spec = write_results({"gdn": 0.3, "gdn_attn": 0.9})
    every, scored = grid_of(spec), grid_of(spec, only_scored=True)
    assert [row.label for row in every.rows] == ["GDN", "GDN+Attn", "laLTE"]
    assert [row.label for row in scored.rows] == ["GDN", "GDN+Attn"]
    assert any("laLTE: no result" in note for note in every.notes)
    assert not any("laLTE: no result" in note for note in scored.notes)
    path = Path(spec["results"]["recall/gdn/seed0/recall"])
    for seed in (0, 1):
        (path.parents[1] / f"seed{seed}" / "recall" / "results.json").unlink()
    assert [row.label for row in grid_of(spec, only_scored=True).rows] == ["GDN", "GDN+Attn"]


def test_a_variant_that_was_asked_for_one_seed_lacks_none_and_is_named(write_results: Any) -> None:
    spec = write_results({"gdn": 0.3, "gdn_attn": 0.9, "gdn_lte": 0.6})
    del spec["results"]["recall/gdn/seed1/recall"]
    lacking = 'GDN: 1 of 2 seeds for "pairs: 4".'
    assert lacking in grid_of(spec).notes
    for asked in ({"variant_seeds": {"gdn": [0]}}, {"task_overrides": {"recall": {"seeds": [0]}}}):
        study = {**spec["studies"]["recall"], **asked}
        notes = grid_of({**spec, "studies": {"recall": study}}).notes
        assert lacking not in notes
        assert any("seeds: 2, in places 1 (GDN)." in note for note in notes)
