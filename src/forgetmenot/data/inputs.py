"""Telling a builder's inputs apart by their files: the names are the configuration's choice."""

from pathlib import Path

from forgetmenot.errors import UserError


def only_input(builder: str, inputs: dict[str, Path], file: str) -> Path:
    """The one input folder that holds `file`. Raises UserError unless there is exactly one."""
    found = sorted(name for name, folder in inputs.items() if (folder / file).is_file())
    if len(found) != 1:
        raise UserError(
            f"{builder}: needs exactly one input with {file}, found {found} among {sorted(inputs)}"
        )
    return inputs[found[0]]
