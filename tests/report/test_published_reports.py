"""The reports that this repository publishes follow from the results that they keep."""

import shutil
from pathlib import Path

import pytest

from forgetmenot import provenance
from forgetmenot.cli import report

PUBLISHED = provenance.CHECKOUT / "reports" / "published"


@pytest.mark.parametrize("scale", sorted(path.name for path in PUBLISHED.iterdir()))
def test_a_published_report_follows_from_its_results(
    scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = PUBLISHED / scale
    again = tmp_path / "reports" / "published" / scale
    shutil.copytree(kept, again)
    made = ["claims.json", *(str(path.relative_to(kept)) for path in kept.glob("tables/*.csv"))]
    for name in made:
        (again / name).unlink()
    monkeypatch.chdir(tmp_path)
    assert report.command(["published"]) == 0
    assert {name: (again / name).read_text() for name in made} == {
        name: (kept / name).read_text() for name in made
    }
