import subprocess
import zipfile
from pathlib import Path

import pytest

from forgetmenot.data.package import read_package
from forgetmenot.errors import UserError

MEMBERS = {
    "toy/__init__.py": b"raise SystemExit('imported')",
    "toy/data/b.txt": b"second",
    "toy/data/a.txt": b"first",
    "toy/data/a.csv": b"table",
    "../outside.txt": b"escaped",
}


def read(pattern, options, name="toy-texts"):
    return read_package(name, options["version"], options["sha256"], pattern, options["wheelhouse"])


def test_reads_matching_members_in_order_and_never_imports(make_wheel):
    options = make_wheel("toy-texts", "1.2", MEMBERS)
    found = read("toy/data/*.txt", options)
    assert list(found.items()) == [("toy/data/a.txt", b"first"), ("toy/data/b.txt", b"second")]


def test_a_member_with_a_path_outside_writes_nothing(make_wheel, tmp_path):
    options = make_wheel("toy-texts", "1.2", MEMBERS)
    before = sorted(tmp_path.rglob("*"))
    assert read("*outside.txt", options) == {"../outside.txt": b"escaped"}
    assert sorted(tmp_path.rglob("*")) == before


def test_wrong_hash_names_file_and_both_hashes(make_wheel):
    options = make_wheel("toy-texts", "1.2", MEMBERS)
    right, options["sha256"] = options["sha256"], "0" * 64
    with pytest.raises(UserError) as error:
        read("*", options)
    for part in ("toy_texts-1.2-py3-none-any.whl", right, "0" * 64):
        assert part in str(error.value)


def test_altered_wheel_is_refused(make_wheel):
    options = make_wheel("toy-texts", "1.2", MEMBERS)
    (wheel,) = Path(options["wheelhouse"]).iterdir()
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("toy/data/c.txt", "third")
    with pytest.raises(UserError, match="expected"):
        read("toy/data/*.txt", options)


def test_no_matching_member(make_wheel):
    options = make_wheel("toy-texts", "1.2", MEMBERS)
    with pytest.raises(UserError, match=r"toy_texts-1\.2.*no member matches toy/\*\.json"):
        read("toy/*.json", options)


def test_absent_package_says_what_was_asked_and_what_pip_said(make_wheel):
    options = make_wheel("toy-texts", "1.2", MEMBERS) | {"version": "9.9"}
    with pytest.raises(UserError) as error:
        read("*", options)
    message = str(error.value)
    assert "toy-texts==9.9" in message
    assert options["wheelhouse"] in message
    assert "No matching distribution found" in message
    assert "\n" not in message


def test_wheelhouse_that_is_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"wheelhouse: .*absent is not a folder"):
        read_package("toy-texts", "1.2", "0" * 64, "*", str(tmp_path / "absent"))


def test_without_a_wheelhouse_pip_asks_its_index_for_wheels_only(monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "one\nERROR: no route\n\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match="toy==1 from the package index; pip said: ERROR: no route"):
        read_package("toy", "1", "0" * 64, "*")
    (command,) = commands
    assert "--no-index" not in command
    assert {"--no-deps", "--only-binary=:all:", "toy==1"} <= set(command)
