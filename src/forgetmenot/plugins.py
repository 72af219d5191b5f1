"""Plugins: every module of a folder that has a class `Options` can be chosen by its name.

The folders `mixers`, `data`, `evaluate` and `prosg` are the registries: there is no list to keep.
"""

import ast
import dataclasses
import functools
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from forgetmenot.errors import UserError

Kind = Literal["mixers", "data", "evaluate", "prosg"]
PACKAGE_ROOT = Path(__file__).resolve().parent


def names(kind: str, root: Path = PACKAGE_ROOT) -> list[str]:
    """Return the names of the plugins of one kind, sorted. Nothing is imported."""
    return sorted(path.stem for path in (root / kind).glob("*.py") if _has_options(path))


def load(kind: Kind, name: str) -> ModuleType:
    """Import the plugin `name`. Raises UserError with the allowed names when there is none."""
    require(kind, name, f"{kind} plugin")
    return importlib.import_module(f"forgetmenot.{kind}.{name}")


def options_class(
    kind: str,
    name: str,
    class_name: str = "Options",
    where: str = "plugin",
    root: Path = PACKAGE_ROOT,
) -> type[Any]:
    """Return the plugin's options dataclass without importing the plugin (and hence torch).

    The class must be self-contained: plain types, `list`, `dict`, `tuple`, unions with None and
    `Literal`, and a `__post_init__` that raises ValueError. Raises UserError, blaming `where`, for
    an unknown plugin, and for a plugin without the class `class_name`.
    """
    require(kind, name, where, root)
    return extract_class(root / kind / f"{name}.py", class_name)


def extract_class(path: Path, class_name: str = "Options") -> type[Any]:
    """Execute only the dataclass `class_name` of a Python file and return it."""
    node = _class(path, class_name)
    if node is None:
        raise UserError(f"{path}: found no class {class_name}; an options dataclass is needed")
    namespace: dict[str, Any] = {
        "__name__": f"{path.parent.name}.{path.stem}",
        "dataclass": dataclasses.dataclass,
        "dataclasses": dataclasses,
        "field": dataclasses.field,
        "Any": Any,
        "Literal": Literal,
    }
    body = ast.Module(body=[node], type_ignores=[])
    exec(compile(body, str(path), "exec", dont_inherit=True), namespace)
    extracted: type[Any] = namespace[class_name]
    return extracted


def require(kind: str, name: str, where: str, root: Path = PACKAGE_ROOT) -> None:
    """Raise UserError, blaming `where` and listing the allowed names, unless the plugin exists."""
    path = root / kind / f"{name}.py"
    if not name.isidentifier() or not path.is_file() or not _has_options(path):
        allowed = ", ".join(names(kind, root)) or "none yet"
        raise UserError(f"{where}: found {name!r}; allowed: {allowed}")


def _has_options(path: Path) -> bool:
    """Tell whether a file defines `Options` or imports it from a module of plain data."""
    return _class(path, "Options") is not None or any(
        alias.name == "Options"
        for node in _body(path)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    )


def _class(path: Path, class_name: str) -> ast.ClassDef | None:
    for node in _body(path):
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return node
    return None


@functools.cache
def _body(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_bytes(), filename=str(path)).body
