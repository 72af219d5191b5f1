"""Checked options of plugins, and the plain model spec of a variant at a size."""

import dataclasses
from pathlib import Path
from typing import Any

from forgetmenot import plugins
from forgetmenot.config import Model, Size
from forgetmenot.config_files import check, one_of


def model_spec(model: Model, size: Size, model_file: str, size_file: str) -> dict[str, Any]:
    """Return the plain model spec of a variant at a size; its vocabulary comes from the data.

    Raises UserError for a block that the size lacks and for options that a mixer refuses.
    """
    one_of(model.ffn, size.blocks, f"{model_file}: ffn")
    for n, block in enumerate(model.pattern):
        one_of(block, size.blocks, f"{model_file}: pattern.{n}")
    for block in model.overrides:
        one_of(block, {*model.pattern, model.ffn}, f"{model_file}: overrides")
    layers = {}
    for block in {*model.pattern, model.ffn}:
        where = f"{size_file}: blocks.{block}"
        overrides = model.overrides.get(block, {})
        if overrides:
            where += f" with {model_file}: overrides.{block}"
        layers[block] = _layer({**size.blocks[block], **overrides}, where)
    order = [
        block
        for n in range(size.layers)
        for block in (model.pattern[n % len(model.pattern)], model.ffn)
    ]
    prosg = None
    if model.prosg is not None:
        path = plugins.PACKAGE_ROOT / "prosg" / "options.py"
        prosg = module_options(path, model.prosg, f"{model_file}: prosg")
    return {
        **size.model_dump(exclude={"blocks", "layers"}),
        "layers": [layers[block] for block in order],
        "vocab": None,
        "residual_init": model.residual_init,
        "prosg": prosg,
    }


def plugin_options(
    kind: str, name: str, values: dict[str, Any], where: str, class_name: str = "Options"
) -> dict[str, Any]:
    """Return a plugin's options with defaults filled in, checked without importing the plugin."""
    schema = plugins.options_class(kind, name, class_name, where)
    return as_values(check(schema, values, where))


def module_options(path: Path, values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the options that the class `Options` of a Python file declares, checked."""
    return as_values(check(plugins.extract_class(path), values, where))


def as_values(options: Any) -> dict[str, Any]:
    """Return an options dataclass as plain values."""
    return dataclasses.asdict(options)


def _layer(block: dict[str, Any], where: str) -> list[Any]:
    options = dict(block)
    mixer = str(options.pop("mixer", None))
    plugins.require("mixers", mixer, f"{where}.mixer")
    return [mixer, plugin_options("mixers", mixer, options, where)]
