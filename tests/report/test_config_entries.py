"""Every table and claim of the configuration fits the schema and can be drawn from nothing."""

from dataclasses import asdict
from pathlib import Path

import pytest

from forgetmenot.config_files import check, read_yaml
from forgetmenot.errors import UserError
from forgetmenot.report import tables
from forgetmenot.report.results import Results
from forgetmenot.report.spec import Claim, Table

CONFIG = Path(__file__).parents[2] / "workflow" / "config"
PAPERS = CONFIG.parents[1] / "reports" / "papers"


@pytest.mark.parametrize("path", sorted((CONFIG / "tables").glob("*.yaml")), ids=lambda p: p.stem)
def test_tables(path: Path) -> None:
    table = check(Table, {**read_yaml(path), "name": path.stem}, str(path))
    assert table.published is None or (PAPERS / f"{table.published}.yaml").is_file()
    grid = tables.build(table, {}, Results())
    assert grid.rows == []
    assert "an empty table" in " ".join(grid.notes)


@pytest.mark.parametrize("path", sorted((CONFIG / "claims").glob("*.yaml")), ids=lambda p: p.stem)
def test_claims(path: Path) -> None:
    claim = check(Claim, {**read_yaml(path), "id": path.stem}, str(path))
    models = {file.stem for file in (CONFIG / "models").glob("*.yaml")}
    assert {claim.better, claim.worse} <= models
    assert claim.control is None or claim.control in models
    assert (CONFIG / "tasks" / f"{claim.task}.yaml").is_file()
    assert asdict(claim)["source"]


def test_an_unknown_key_of_a_column_is_named() -> None:
    values = {"title": "t", "paper": "lte", "task": "recall"}
    column = {"metric": "accuracy", "header": "a", "beter": "higher"}
    with pytest.raises(UserError, match=r"columns\.0\.beter: unknown key.*did you mean 'better'"):
        check(Table, {**values, "columns": [column]}, "x.yaml")
