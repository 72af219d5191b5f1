"""The glossary: what occurs is explained, what does not is left out, headings lead to it."""

import re
from pathlib import Path
from typing import Any

import pytest

from forgetmenot.config_files import check, read_yaml
from forgetmenot.report import glossary, layout
from forgetmenot.report.build import build
from forgetmenot.report.spec import Table

TABLES = Path(__file__).parents[2] / "workflow" / "config" / "tables"


def names(page: str) -> list[str]:
    return [term.name for term in glossary.occurring(page)]


def test_only_terms_that_occur_and_those_their_definitions_need() -> None:
    assert names("<p>nothing of that kind</p>") == []
    found = names("<p>half&#45;distance</p>")
    assert {"half-distance", "retention R(D)", "capture", "chance"} <= set(found)
    assert not {"GDN", "Holm", "budget"} & set(found)


def test_words_count_whole_and_abbreviations_as_written() -> None:
    assert "window" in names("<b>Window</b>")
    assert "window" not in names("windowed <i title='window'>x</i>")
    assert "SWA" in names("GDN+SWA")
    assert "SWA" not in names("swa")
    assert "LTE" not in names("<code>LTE</code> LTEs")


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        ("own less wrong update (points)", "own less wrong update"),
        ("perplexity of general text, with / without", "harm"),
        ("R by distance from the prompt (tokens)", "retention R(D)"),
        ("R @ 64", "retention R(D)"),
        ("p (Holm)", "Holm"),
        ("S-NIAH-2", "S-NIAH-2"),
    ],
)
def test_a_heading_leads_to_its_first_and_longest_term(heading: str, name: str) -> None:
    term = glossary.of(heading)
    assert term is not None
    assert term.name == name


def test_names_and_anchors_are_unique() -> None:
    for found in ([t.name for t in glossary.TERMS], [t.anchor for t in glossary.TERMS]):
        assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", ["prosg_main", "prosg_retention", "prosg_persona", "niah_audit"])
def test_every_heading_of_a_hard_table_is_explained(name: str) -> None:
    table = check(Table, {**read_yaml(TABLES / f"{name}.yaml"), "name": name}, name)
    for column in table.columns:
        assert glossary.of(layout.over(column)) is not None, column.header


def test_the_page_explains_its_terms_and_its_headings_lead_there(
    write_results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = write_results({"gdn": 0.3, "gdn_attn": 0.9, "gdn_lte": 0.6})
    build(spec, {}, tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    explained = re.findall(r'<dt id="term-[^"]+">([^<]+)</dt>', text)
    assert {"GDN", "laLTE", "pairs", "interval"} <= set(explained)
    assert not {"AUFC", "S-NIAH-1", "NSA"} & set(explained)
    assert re.search(r'<th[^>]*><span><a href="#term-pairs" title="Recall: so many', text)
    alone = (tmp_path / "report" / "tables" / "recall.html").read_text()
    assert '<a href="../index.html#term-pairs"' in alone
