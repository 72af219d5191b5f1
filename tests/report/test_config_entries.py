"""Every table and claim of the configuration fits the schema and can be drawn from nothing."""

from pathlib import Path

import pytest

from forgetmenot.config_files import check, read_yaml
from forgetmenot.errors import UserError
from forgetmenot.report import published, tables
from forgetmenot.report.results import Results
from forgetmenot.report.spec import Claim, Table, listed

CONFIG = Path(__file__).parents[2] / "workflow" / "config"
PAPERS = CONFIG.parents[1] / "reports" / "papers"


@pytest.mark.parametrize("path", sorted((CONFIG / "tables").glob("*.yaml")), ids=lambda p: p.stem)
def test_tables(path: Path) -> None:
    table = check(Table, {**read_yaml(path), "name": path.stem}, str(path))
    assert published.anchors(listed(table.published), published.read_all(PAPERS))[1] == []
    grid = tables.build(table, {}, Results())
    assert grid.rows == []
    assert "an empty table" in " ".join(grid.notes)


@pytest.mark.parametrize("path", sorted((CONFIG / "claims").glob("*.yaml")), ids=lambda p: p.stem)
def test_claims(path: Path) -> None:
    claim = check(Claim, {**read_yaml(path), "id": path.stem}, str(path))
    models = {file.stem for file in (CONFIG / "models").glob("*.yaml")}
    assert set(claim.variants) <= models
    tasks = {file.stem for file in (CONFIG / "tasks").glob("*.yaml")}
    assert set(listed(claim.task)) <= tasks | {"train"}
    assert claim.source


def test_every_numbered_claim_of_both_papers_is_there() -> None:
    claims = [read_yaml(path) for path in (CONFIG / "claims").glob("*.yaml")]
    numbers = {claim.get("number") for claim in claims}
    assert {*(f"L{n}" for n in range(1, 7)), *(f"P{n}" for n in range(1, 5))} <= numbers
    for claim in claims:
        assert claim.get("number", claim["paper"][0].upper())[0] == claim["paper"][0].upper()


def test_an_unknown_key_of_a_column_is_named() -> None:
    values = {"title": "t", "paper": "lte", "task": "recall"}
    column = {"metric": "accuracy", "header": "a", "beter": "higher"}
    with pytest.raises(UserError, match=r"columns\.0\.beter: unknown key.*did you mean 'better'"):
        check(Table, {**values, "columns": [column]}, "x.yaml")
