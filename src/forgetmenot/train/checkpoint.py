"""Checkpoints: safetensors and JSON with hashes, written whole or not at all.

<folder>/step-<n>/{<group>.safetensors, ..., state.json}
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from forgetmenot.errors import UserError
from forgetmenot.files import sha256_file, sha256_json, write_json

KEEP = 2


class Checkpoint(NamedTuple):
    """What was saved after optimizer step `step`: groups of named tensors, and plain values."""

    step: int
    groups: dict[str, dict[str, Tensor]]
    values: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint, identity: str) -> None:
    """Write `<folder>/step-<n>` through a temporary folder and a rename; keep the last two.

    `identity` names what is trained (configuration, code, data); `load_newest` asks for it.
    Raises OSError (for example ENOSPC); earlier checkpoints are then left as they were.
    """
    temporary = folder / f".step-{checkpoint.step}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    hashes = {}
    for group, tensors in checkpoint.groups.items():
        path = temporary / f"{group}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        _sync(path)
        hashes[path.name] = sha256_file(path)
    state = {
        "step": checkpoint.step,
        "identity": identity,
        "values": checkpoint.values,
        "sha256": hashes,
    }
    write_json(temporary / "state.json", {**state, "state_sha256": sha256_json(state)})
    target = folder / f"step-{checkpoint.step}"
    shutil.rmtree(target, ignore_errors=True)  # only there if it was refused when resuming
    os.replace(temporary, target)
    _sync(folder)
    older = [step for step in _steps(folder) if step < checkpoint.step]
    for step in _steps(folder):
        # Later steps than the newest are of a run that was refused: they must not outlive this one.
        if step > checkpoint.step or step in older[: -(KEEP - 1)]:
            shutil.rmtree(folder / f"step-{step}")


def load_newest(
    folder: Path, identity: str, warn: Callable[[str], None], device: str = "cpu"
) -> Checkpoint | None:
    """Return the newest checkpoint that is whole and of this `identity`, or None.

    One that is truncated, altered or of another run is passed over for the one before, and
    `warn` gets a line naming the file with the hashes found and expected.
    """
    steps = _steps(folder)
    for step in reversed(steps):
        path = folder / f"step-{step}"
        try:
            return _load(path, identity, device)
        except UserError as error:
            warn(f"checkpoint passed over: {error}")
    if steps:
        warn(f"no usable checkpoint in {folder}: starting from step 0")
    return None


def _load(path: Path, identity: str, device: str) -> Checkpoint:
    try:
        state = json.loads((path / "state.json").read_text())
        expected = state.pop("state_sha256")
        found = sha256_json(state)
        wanted, groups = state["identity"], state["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / 'state.json'}: cannot be read ({error})") from error
    if found != expected:
        raise UserError(f"{path / 'state.json'}: found sha256 {found}, expected {expected}")
    if wanted != identity:
        raise UserError(f"{path}: found a run with identity {wanted}, expected {identity}")
    for name, expected in groups.items():
        if not (path / name).is_file():
            raise UserError(f"{path / name}: found no file, expected sha256 {expected}")
        found = sha256_file(path / name)
        if found != expected:
            raise UserError(f"{path / name}: found sha256 {found}, expected {expected}")
    tensors = {Path(name).stem: load_file(path / name, device=device) for name in groups}
    return Checkpoint(state["step"], tensors, state["values"])


def _steps(folder: Path) -> list[int]:
    numbers = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted(int(number) for number in numbers if number.isdigit())


def _sync(path: Path) -> None:
    """Flush a file's data, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
