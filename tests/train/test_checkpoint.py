import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from forgetmenot.files import sha256_file
from forgetmenot.train.checkpoint import Checkpoint, load_newest, save


def _checkpoint(step: int) -> Checkpoint:
    groups = {"model": {"w": torch.full((3,), float(step))}, "loop": {}}
    return Checkpoint(step, groups, {"tokens": step * 10})


def _saved(folder: Path, *steps: int) -> None:
    for step in steps:
        save(folder, _checkpoint(step), "run")


def _load(folder: Path, identity: str = "run") -> tuple[int, list[str]]:
    warnings: list[str] = []
    found = load_newest(folder, identity, warnings.append)
    return (found.step if found else 0), warnings


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    _saved(tmp_path, 5)
    found = load_newest(tmp_path, "run", pytest.fail)
    assert found is not None
    assert found.step == 5
    assert found.values == {"tokens": 50}
    assert torch.equal(found.groups["model"]["w"], torch.full((3,), 5.0))
    assert found.groups["loop"] == {}


def test_the_last_two_stay_and_the_newest_is_taken(tmp_path: Path) -> None:
    _saved(tmp_path, 5, 90, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-100", "step-90"]
    assert _load(tmp_path) == (100, [])


def test_nothing_there_is_a_silent_start(tmp_path: Path) -> None:
    assert _load(tmp_path / "none") == (0, [])


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit])
def test_a_damaged_file_is_named_with_both_hashes_and_passed_over(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    _saved(tmp_path, 5, 10)
    path = tmp_path / "step-10" / "model.safetensors"
    before = sha256_file(path)
    damage(path)
    step, warnings = _load(tmp_path)
    assert step == 5
    assert len(warnings) == 1
    assert all(text in warnings[0] for text in (str(path), before, sha256_file(path)))


def test_an_altered_or_unreadable_state_is_passed_over(tmp_path: Path) -> None:
    _saved(tmp_path, 5, 10)
    path = tmp_path / "step-10" / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "values": {"tokens": 0}}))
    step, warnings = _load(tmp_path)
    assert step == 5
    assert "found sha256" in warnings[0]
    for content in ("{", "[]", "{}"):
        path.write_text(content)
        step, warnings = _load(tmp_path)
        assert step == 5
        assert str(path) in warnings[0]


def test_a_missing_file_is_passed_over(tmp_path: Path) -> None:
    _saved(tmp_path, 5, 10)
    (tmp_path / "step-10" / "loop.safetensors").unlink()
    step, warnings = _load(tmp_path)
    assert step == 5
    assert "loop.safetensors" in warnings[0]


def test_with_none_usable_the_run_starts_over_and_says_so(tmp_path: Path) -> None:
    _saved(tmp_path, 5, 10)
    step, warnings = _load(tmp_path, "another run")
    assert step == 0
    assert len(warnings) == 3
    assert "starting from step 0" in warnings[-1]


def test_a_refused_later_checkpoint_does_not_outlive_the_new_run(tmp_path: Path) -> None:
    _saved(tmp_path, 5, 10)
    save(tmp_path, _checkpoint(2), "another run")
    assert _load(tmp_path, "another run") == (2, [])
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


def test_a_refused_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    _saved(tmp_path, 5, 10)
    _truncate(tmp_path / "step-10" / "model.safetensors")
    _saved(tmp_path, 10)
    assert _load(tmp_path) == (10, [])


def test_a_write_that_was_cut_off_is_not_a_checkpoint(tmp_path: Path) -> None:
    _saved(tmp_path, 5)
    shutil.copytree(tmp_path / "step-5", tmp_path / ".step-10")
    assert _load(tmp_path) == (5, [])
    _saved(tmp_path, 10)
    assert _load(tmp_path) == (10, [])


def test_a_failed_write_leaves_earlier_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _saved(tmp_path, 5)

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("forgetmenot.train.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space"):
        _saved(tmp_path, 10)
    assert _load(tmp_path) == (5, [])
