"""Readers meet display names: every task has one, and no file name is in a sentence."""

import re
from pathlib import Path
from typing import Any

import pytest

from forgetmenot.report import names
from forgetmenot.report.build import build

CONFIG = Path(__file__).parents[2] / "workflow" / "config"


def test_every_task_has_a_name_without_underscores() -> None:
    tasks = {file.stem for file in (CONFIG / "tasks").glob("*.yaml")} | {"train"}
    assert set(names.TASKS) == tasks
    assert not any("_" in shown for shown in names.TASKS.values())


def test_a_variant_is_called_by_its_label_and_an_unknown_one_by_its_name() -> None:
    variants = [{"name": "gdn", "label": "GDN"}, {"name": "bare"}]
    spec = {
        "studies": {"recall": {"title": "Recall", "variants": variants}},
        "claim_labels": {"gdn_nsa": "laNSA", "gdn": "never used"},
    }
    known = names.of(spec)
    shown = [known.variant(name) for name in ("gdn", "bare", "gdn_nsa", "other")]
    assert shown == ["GDN", "bare", "laNSA", "other"]
    assert (known.study("recall"), known.study("prompts")) == ("Recall", "prompts")


def test_needle_tasks_have_rulers_names() -> None:
    assert (names.value("niah_2"), names.value(64)) == ("S-NIAH-2", "64")


def prose(page: str) -> str:
    """What a reader reads: no image, graph or path, and no heading of a folder."""
    for part in ("<style.*?</style>", "<svg.*?</svg>", "<pre>.*?</pre>", "<code>.*?</code>"):
        page = re.sub(part, "", page, flags=re.S)
    return re.sub(r"<[^>]*>", "", page)


def test_no_file_name_stands_in_the_pages_sentences(
    write_results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = write_results({"gdn": 0.02, "gdn_attn": 0.9, "gdn_lte": 0.6})
    spec["claim_labels"] = {"gdn_nsa": "laNSA"}
    spec["studies"]["recall"]["train_overrides"] = {"gdn_lte": {"steps": 200}}
    spec["tables"][0]["task"] = "niah"  # nobody was scored on it: every row has a note
    spec["studies"]["recall"]["tasks"].append("niah")
    claim = {"paper": "lte", "text": "A claim", "source": "a test", "study": "recall"}
    claim |= {"task": "recall", "metric": "accuracy", "better": "gdn_lte"}
    spec["claims"] = [
        claim | {"id": "1", "worse": "gdn", "worse_above": 0.1},
        claim | {"id": "2", "worse": "gdn_attn", "control": "gdn", "control_above": 0.5},
        claim | {"id": "3", "worse": "gdn_nsa"},
        claim | {"id": "4", "worse": "gdn", "task": "niah"},
    ]
    build(spec, {}, tmp_path / "reports" / "smoke")
    text = prose((tmp_path / "reports" / "smoke" / "index.html").read_text())
    for words in (
        "GDN reached 0.02 at best anywhere",
        "the control GDN reached",
        "laNSA has no result of multi-query recall",
        "laLTE: no result of needle in a haystack",
        "Training of laLTE differs",
        "Tested on needle in a haystack in the study &#34;Recall&#34;",
    ):
        assert words in text
    assert re.findall(r"\b(?:gdn\w*|niah\w*)\b", text) == []
    claims = (tmp_path / "reports" / "smoke" / "claims.md").read_text()
    assert re.findall(r"\b(?:gdn\w*|niah\w*)\b", claims) == []


def test_a_study_that_is_not_here_is_not_called_by_its_files_name() -> None:
    known = names.Names(studies={"recall": "Recall"})
    assert known.where("recall") == ' in the study "Recall"'
    assert known.where("prompts") == " (its study is not part of this report)"
