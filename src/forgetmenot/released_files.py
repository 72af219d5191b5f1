"""Checkpoint folders in the layout of the hub: where from, and what is in them."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from forgetmenot.errors import UserError
from forgetmenot.files import sha256_file
from forgetmenot.manifest import read_object

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
USED = ("config.json", "*.safetensors", INDEX, TOKENIZER)


def obtain(repository: str, revision: str | None, mirror: str | None, where: str) -> Path:
    """The folder with a checkpoint's files: `mirror`, or else downloaded into the hub's cache.

    Raises UserError, blaming the keys of `where`, for a mirror that is no folder, for a missing
    revision, and when the hub does not give the files.
    """
    if mirror is not None:
        if not Path(mirror).is_dir():
            raise UserError(
                f"{where}.mirror: {mirror} is not a folder; allowed: one with the files of "
                f"{repository}"
            )
        return Path(mirror)
    if revision is None:
        raise UserError(
            f"{where}.revision: found none; put the commit of {repository} there (40 hexadecimal "
            "digits, from the history of its files on the hub), or a local copy in `mirror`"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(USED)))
    except Exception as error:  # the hub's client and what it is built on raise their own kinds
        raise UserError(
            f"{where}: cannot fetch {repository} at {revision} from the hub ({error}); without "
            "the hub, name a local copy in `mirror`"
        ) from error


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files in a checkpoint folder that are used, by name."""
    paths = {path for pattern in USED for path in folder.glob(pattern)}
    return {path.name: sha256_file(path) for path in sorted(paths)}


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The configuration and all tensors of a checkpoint folder.

    Weights are one `model.safetensors`, or the files that `model.safetensors.index.json` names
    ({"weight_map": {tensor: file}}). Raises UserError for a file that is missing or unreadable, and
    for shards that do not hold what the index says.
    """
    config = read_object(folder / "config.json", "the configuration of a released checkpoint")
    if (folder / INDEX).is_file():
        return config, _read_shards(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: found neither {WEIGHTS} nor {INDEX}")
    return config, read_tensors(folder / WEIGHTS)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file. Raises UserError when it is missing or unreadable."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def _read_shards(folder: Path) -> dict[str, torch.Tensor]:
    index = read_object(folder / INDEX, 'an index, {"weight_map": {tensor: file}}')
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{folder / INDEX}: weight_map: found none; allowed: {{tensor: file}}")
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(places.values())):
        # A file name of the index goes nowhere but into this folder.
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{folder / INDEX}: weight_map: found {name!r}; allowed: file names")
        tensors |= read_tensors(folder / name)
    lost, extra = places.keys() - tensors.keys(), tensors.keys() - places.keys()
    if lost or extra:
        raise UserError(
            f"{folder / INDEX}: the shards do not hold what it says; "
            f"not there: {', '.join(sorted(lost)) or 'none'}; "
            f"not in the index: {', '.join(sorted(extra)) or 'none'}"
        )
    return tensors
