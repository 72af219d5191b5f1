"""Published statements and figures: reports/papers/*.yaml, each fact with its source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from forgetmenot.errors import UserError

NEEDED = ("title", "arxiv", "status", "claims", "limits", "tables")
TABLE = ("name", "title", "source", "conditions", "header", "rows")


@dataclass(frozen=True)
class Anchor:
    """A table that others published: where it stands, under what conditions, and its cells."""

    paper: str
    title: str
    source: str
    conditions: str
    header: list[str]
    rows: list[list[str]]


def read_all(folder: Path) -> dict[str, dict[str, Any]]:
    """Read every file of the folder, by its stem. Raises UserError naming file and key.

    Keys: title, arxiv, status (what is known of the paper's results), claims (list of text and
    source), limits (what our results on it do not show), tables (list of name, title, source,
    conditions, header and rows).
    """
    return {path.stem: _read(path) for path in sorted(folder.glob("*.yaml"))}


def anchors(
    references: Sequence[str], papers: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Anchor], list[str]]:
    """The tables meant by "<file>" (all of it) or "<file>.<name>"; then what was not found."""
    found, missing = [], []
    for reference in references:
        stem, _, name = reference.partition(".")
        paper = papers.get(stem, {})
        chosen = [t for t in paper.get("tables", []) if name in ("", t["name"])]
        if not chosen:
            missing.append(f"reports/papers/{stem}.yaml has no table {name or 'at all'}.")
        found += [
            Anchor(
                paper["title"],
                table["title"],
                table["source"],
                table["conditions"],
                [str(cell) for cell in table["header"]],
                [[str(cell) for cell in row] for row in table["rows"]],
            )
            for table in chosen
        ]
    return found, missing


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: found a {type(values).__name__}; allowed: a mapping")
    _require(values, NEEDED, str(path))
    for number, claim in enumerate(values["claims"]):
        _require(claim, ("text", "source"), f"{path}: claims.{number}")
    for number, table in enumerate(values["tables"]):
        where = f"{path}: tables.{number}"
        _require(table, TABLE, where)
        for row in table["rows"]:
            if len(row) != len(table["header"]):
                raise UserError(
                    f"{where}: rows: found {len(row)} cells in {row[0]!r}; "
                    f"allowed: {len(table['header'])}, as in the header"
                )
    return values


def _require(values: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    missing = [key for key in keys if key not in values]
    if missing:
        raise UserError(f"{where}: keys missing: {', '.join(missing)}; needed: {', '.join(keys)}")
