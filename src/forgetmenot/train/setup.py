"""From a job's plain values to what the loop takes."""

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn

from forgetmenot import plugins
from forgetmenot.errors import UserError
from forgetmenot.train.mixture import Mixture, Source
from forgetmenot.train.options import Options

PREFIXES = {"generator": "generator.", "base": "base."}  # of the parameters of a ProSG model


def options(values: dict[str, Any]) -> Options:
    """The options of a spec. Raises UserError for an unknown key or a value not allowed."""
    try:
        return Options(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"train: {error}") from error


def accelerator(device: str, precision: str) -> Accelerator:
    """Device, precision and data parallelism. Raises UserError for `cuda` where there is none."""
    made = Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if precision == "bf16" else "no",
        # A batch without a prompt leaves ProSG's generator out.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if device not in ("auto", made.device.type):
        raise UserError(f"device: found {device!r}, allowed here: 'auto', {made.device.type!r}")
    return made


def mixture(members: list[dict[str, Any]], inputs: dict[str, Path], seed: int) -> Mixture:
    """The streams of `members` ({"dataset", "builder", "weight", "options"}) over built folders.

    A dataset that is named more than once (with other options) is `<dataset>#<n>` in the logs.
    Raises UserError for an unknown builder, or options or weights that are not allowed.
    """
    sources: list[Source] = []
    for member in members:
        plugin = plugins.load("data", member["builder"])
        try:
            stream_options = plugin.StreamOptions(**member["options"])
        except (TypeError, ValueError) as error:
            raise UserError(f"data: {member['dataset']}: {error}") from error
        stream = plugin.Stream(inputs[member["dataset"]], stream_options)
        same = sum(source.name.split("#")[0] == member["dataset"] for source in sources)
        name = f"{member['dataset']}#{same + 1}" if same else member["dataset"]
        sources.append(Source(name, stream, member["weight"]))
    try:
        return Mixture(sources, seed)
    except ValueError as error:
        raise UserError(str(error)) from error


def vocabulary(members: list[dict[str, Any]], inputs: dict[str, Path]) -> int:
    """The largest `vocab_size` that the datasets' meta.json state."""
    folders = {inputs[member["dataset"]] for member in members}
    return max(
        int(json.loads((folder / "meta.json").read_text())["vocab_size"]) for folder in folders
    )


def freeze(model: nn.Module, trainable: str) -> None:
    """Leave `all` parameters, or only those of ProSG's `generator` or `base`, to the optimizer.

    Raises UserError for another word, and when the model has no generator.
    """
    if trainable == "all":
        return
    if trainable not in PREFIXES:
        raise UserError(f"trainable: found {trainable!r}, allowed: 'all', 'generator', 'base'")
    if not any(name.startswith(PREFIXES["generator"]) for name, _ in model.named_parameters()):
        raise UserError(f"trainable: found {trainable!r}, allowed for this model: 'all' (no ProSG)")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(PREFIXES[trainable]))
