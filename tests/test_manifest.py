"""Manifests: identity, stamps, and verification that names the damaged file."""

import json
from pathlib import Path
from typing import Any

import pytest

from forgetmenot import manifest
from forgetmenot.errors import UserError
from forgetmenot.files import sha256_file, write_json

REQUEST: dict[str, Any] = {
    "stage": "data",
    "name": "data/a",
    "out": "data/built/a",
    "work": "work/runs/data/a",
    "inputs": {"b": "data/built/b"},
    "spec": {"x": 1},
    "seed": 0,
    "code": "c0de",
    "code_roots": [],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "sub" / "b.txt").write_text("two")
    outputs = manifest.hash_outputs(tmp_path)
    write_json(tmp_path / "manifest.json", {"id": "x", "outputs": outputs})
    write_json(tmp_path / "stamp.json", {"id": "x"})
    return tmp_path


def test_outputs_are_all_files_but_manifest_and_stamp(folder: Path) -> None:
    outputs = manifest.hash_outputs(folder)
    assert set(outputs) == {"a.txt", "sub/b.txt"}
    assert outputs["a.txt"] == {"sha256": sha256_file(folder / "a.txt"), "bytes": 3}


def test_an_untouched_folder_verifies(folder: Path) -> None:
    assert manifest.verify(folder)["id"] == "x"


def test_an_altered_file_is_named_with_both_hashes(folder: Path) -> None:
    before = sha256_file(folder / "a.txt")
    (folder / "a.txt").write_text("One")
    after = sha256_file(folder / "a.txt")
    with pytest.raises(UserError, match=rf"a\.txt: found sha256 {after}; .* says {before}"):
        manifest.verify(folder)


def test_a_lost_file_and_a_lost_manifest_are_named(folder: Path) -> None:
    (folder / "sub" / "b.txt").unlink()
    with pytest.raises(UserError, match=r"b\.txt: found sha256 no file"):
        manifest.verify(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json: found no file"):
        manifest.verify(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"id": 1}'])
def test_a_broken_manifest_is_named(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: "):
        manifest.verify(folder)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"tracking": {"uri": "http://127.0.0.1"}}, True),
        ({"tags": {"a": 1}}, True),
        ({"out": "elsewhere"}, True),
        ({"inputs": {"b": "elsewhere"}}, True),
        ({"inputs": {"c": "data/built/b"}}, False),
        ({"spec": {"x": 2}}, False),
        ({"seed": 1}, False),
        ({"code": "other"}, False),
        ({"name": "data/b"}, False),
        ({"stage": "train"}, False),
    ],
)
def test_identity_is_what_decides_the_result(change: dict[str, Any], same: bool) -> None:
    changed = {**REQUEST, **change}
    assert (manifest.identity(changed) == manifest.identity(REQUEST)) is same


def test_the_stamp_follows_outputs_less_volatile_ones() -> None:
    outputs = {"weights": {"sha256": "1"}, "curve": {"sha256": "2"}}
    slower = {"weights": {"sha256": "1"}, "curve": {"sha256": "3"}}
    other = {"weights": {"sha256": "4"}, "curve": {"sha256": "2"}}
    stamp = manifest.stamp_id(REQUEST, outputs, ("curve",))
    assert manifest.stamp_id(REQUEST, slower, ("curve",)) == stamp
    assert manifest.stamp_id(REQUEST, slower, ()) != manifest.stamp_id(REQUEST, outputs, ())
    assert manifest.stamp_id(REQUEST, other, ("curve",)) != stamp


def test_a_request_must_be_whole(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps({key: REQUEST[key] for key in REQUEST if key != "code"}))
    with pytest.raises(UserError, match=r"request\.json: keys missing: code"):
        manifest.load_request(path)
    path.write_text(json.dumps(REQUEST))
    assert manifest.load_request(path) == REQUEST
