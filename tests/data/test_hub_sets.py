import gzip
import json
from pathlib import Path

import pytest

from forgetmenot.data.hub_sets import HubSet, Unavailable, read_rows
from forgetmenot.errors import UserError

ROWS = [{"text": "one", "n": 1}, {"text": "zwei\u2028drei", "n": 2}]
SOURCE = HubSet("someone/set", "validation", file="as-published.json")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.mark.parametrize("name", ["set.jsonl", "set_validation.jsonl", "set.jsonl.gz"])
def test_rows_of_a_mirror(tmp_path: Path, name: str) -> None:
    content = lines(ROWS)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    rows, origin = read_rows("set", SOURCE, None, str(tmp_path))
    assert rows == ROWS
    assert origin == {"mirror": name}


def test_a_distributors_file_and_a_text(tmp_path: Path) -> None:
    (tmp_path / "as-published.json.gz").write_bytes(gzip.compress(json.dumps(ROWS[0]).encode()))
    assert read_rows("set", SOURCE, None, str(tmp_path))[0] == ROWS[:1]
    (tmp_path / "other.txt").write_text("a\nb")
    assert read_rows("other", HubSet(None, "test"), None, str(tmp_path))[0] == [{"text": "a\nb"}]


def test_a_copy_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "mirror" / "someone" / "set"
    folder.mkdir(parents=True)
    (folder / "validation.jsonl").write_bytes(lines(ROWS))
    (folder / "train.jsonl").write_bytes(lines(ROWS * 3))
    rows, origin = read_rows("set", SOURCE, None, str(tmp_path / "mirror"))
    assert rows == ROWS
    assert origin == {"mirror": "someone/set"}


def test_the_hub_is_asked_at_the_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    asked = []

    def load(path: str, **options: object) -> list[dict[str, object]]:
        asked.append((path, options))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = HubSet("someone/set", "test", "part")
    rows, origin = read_rows("set", source, COMMIT, str(tmp_path))
    assert rows == ROWS
    assert origin == {"repository": "someone/set", "revision": COMMIT}
    assert asked == [("someone/set", {"name": "part", "split": "test", "revision": COMMIT})]


def test_a_hub_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(path: str, **options: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        UserError, match=r"set: cannot read someone/set \(no route\); without the hub"
    ):
        read_rows("set", SOURCE, COMMIT, None)


def test_unknown_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="set: revisions has no commit of someone/set; put it"):
        read_rows("set", SOURCE, None, None)
    with pytest.raises(Unavailable, match="the mirror has none of its files"):
        read_rows("set", SOURCE, None, str(tmp_path))
    with pytest.raises(Unavailable, match=r"set: can only be read from a mirror \(a.json\)"):
        read_rows("set", HubSet(None, "test", file="a.json"), COMMIT, None)


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="revisions: set: found 'main', allowed: a commit of"):
        read_rows("set", SOURCE, "main", None)
    with pytest.raises(UserError, match=r"mirror: .*absent is not a folder"):
        read_rows("set", SOURCE, None, str(tmp_path / "absent"))
    (tmp_path / "set.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"set\.jsonl: not readable"):
        read_rows("set", SOURCE, None, str(tmp_path))
    (tmp_path / "set.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match=r"set\.jsonl: found a row that is no object"):
        read_rows("set", SOURCE, None, str(tmp_path))
    (tmp_path / "set.json").write_text("{}")
    with pytest.raises(UserError, match=r"set: found \['set.jsonl', 'set.json'\], allowed: one"):
        read_rows("set", SOURCE, None, str(tmp_path))
