"""Reading configuration: strict YAML, and schema errors in one sentence a user can act on."""

import dataclasses
import difflib
import json
import re
import typing
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from forgetmenot.errors import UserError

T = typing.TypeVar("T")


class _Loader(yaml.SafeLoader):
    """The safe loader, with YAML 1.2's numbers (3e-4 is a float) and no repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"the mapping at line {line} has the key {key!r} twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises UserError naming the file, and the line where it goes wrong."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: found bytes that are not UTF-8 ({error.reason})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: found {_shown(value)}; allowed: a mapping of keys to values")
    return value


def check(schema: type[T], values: dict[str, Any], where: str) -> T:
    """Return `values` as an instance of `schema`, a pydantic model or a standard dataclass.

    Types are strict (no text for numbers) and keys must be known. Raises UserError with `where` (a
    file), the key, what was found and what is allowed.
    """
    try:
        text = json.dumps(values, default=str, allow_nan=False)
    except ValueError:
        raise UserError(f"{where}: found an infinite number or NaN; allowed: finite") from None
    try:
        return typing.cast(T, _adapter(typing.cast(Any, schema)).validate_json(text, strict=True))
    except ValidationError as error:
        details = typing.cast(dict[str, Any], error.errors()[0])
        raise UserError(f"{where}: {_sentence(schema, values, details)}") from None


def one_of(name: str, allowed: typing.Iterable[str], where: str) -> str:
    """Return `name` if it is allowed, else raise UserError with the allowed names."""
    names = sorted(allowed)
    if name not in names:
        hint = _hint(name, names)
        raise UserError(f"{where}: found {name!r}; allowed: {', '.join(names) or 'none'}{hint}")
    return name


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    for part in _parts(schema):
        if dataclasses.is_dataclass(part):
            part.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return TypeAdapter(schema)


def _parts(annotation: Any) -> list[type[Any]]:
    """The structured types inside an annotation, with those of their own fields."""
    if isinstance(annotation, type) and (
        dataclasses.is_dataclass(annotation) or issubclass(annotation, BaseModel)
    ):
        hints = _fields(annotation).values()
        return [annotation, *(part for hint in hints for part in _parts(hint))]
    return [part for argument in typing.get_args(annotation) for part in _parts(argument)]


def _fields(schema: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(schema)
    if dataclasses.is_dataclass(schema):
        return {item.name: hints[item.name] for item in dataclasses.fields(schema)}
    return {name: hints[name] for name in schema.model_fields}


def _sentence(schema: type[Any], values: Any, error: dict[str, Any]) -> str:
    missing = error["type"] in ("missing", "missing_argument")
    keys, owner, inner = [], schema, schema
    for part in error["loc"]:
        # pydantic appends the member of a union that it tried, which is no key of the user's.
        if isinstance(values, dict) and (part in values or missing):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int):
            values = values[part]
        else:
            break
        keys.append(str(part))
        owner = inner
        inner = next(iter(_parts(_fields(owner).get(str(part)))), owner)
    place = ".".join(keys) + ": " if keys else ""
    message = str(error["msg"])
    if missing:
        return f"{place}this key is missing"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        allowed = list(_fields(owner))
        return f"{place}unknown key; allowed: {', '.join(allowed)}{_hint(keys[-1], allowed)}"
    if error["type"] == "value_error":
        return place + message.removeprefix("Value error, ")
    return f"{place}found {_shown(values)}; allowed: {message.removeprefix('Input should be ')}"


def _hint(name: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
