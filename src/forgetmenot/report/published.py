"""Published statements and figures: reports/papers/*.yaml, each fact with its source."""

from pathlib import Path
from typing import Any

import yaml

from forgetmenot.errors import UserError

NEEDED = ("title", "arxiv", "status", "claims", "limits", "tables")
TABLE = ("title", "source", "header", "rows")


def read_all(folder: Path) -> dict[str, dict[str, Any]]:
    """Read every file of the folder, by its stem. Raises UserError naming file and key.

    Keys: title, arxiv, status (what is known of the paper's results), claims (list of text and
    source), limits (what our results on it do not show), tables (list of title, source, header,
    rows and perhaps a note).
    """
    return {path.stem: _read(path) for path in sorted(folder.glob("*.yaml"))}


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
        table.setdefault("note", "")
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
