"""Evaluation sets from the hub at a pinned commit, or from a local mirror folder."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetmenot.errors import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class HubSet:
    """One split of a repository; without a repository the set can only come from a mirror."""

    repository: str | None
    split: str
    subset: str | None = None
    file: str | None = None  # another name of its file in a mirror, as its distributor has it
    licence: str = "as its repository says"


class Unavailable(UserError):
    """Nothing in the configuration says where a set can be had."""


def read_rows(
    name: str, source: HubSet, revision: str | None, mirror: str | None
) -> tuple[list[Row], dict[str, Any]]:
    """All rows of a set, and where they came from.

    A mirror is a folder with, for each set, <name>.jsonl, <name>_<split>.jsonl, the same with .json
    or .txt (one row with the key "text"), or its distributor's file name, each also as .gz; or a
    copy of the hub repository in a folder <owner>/<name>. Raises Unavailable if the mirror
    is not there, or has none of these and `revision` is null; UserError for a file or a hub that
    cannot be read.
    """
    if mirror is not None:
        if not Path(mirror).is_dir():
            raise Unavailable(f"mirror: {mirror} is not a folder; allowed: a folder, or null")
        found = _mirror_file(Path(mirror), name, source)
        if found is not None:
            return _read_file(found), {"mirror": found.name}
        if source.repository and (Path(mirror) / source.repository).is_dir():
            rows = _load(str(Path(mirror) / source.repository), name, source, None)
            return rows, {"mirror": source.repository}
    if source.repository is None or revision is None:
        raise Unavailable(_where(name, source, mirror))
    if len(revision) != 40 or not set(revision) <= set("0123456789abcdef"):
        raise UserError(
            f"revisions: {name}: found {revision!r}, allowed: a commit of {source.repository}, 40 "
            "hexadecimal digits"
        )
    rows = _load(source.repository, name, source, revision)
    return rows, {"repository": source.repository, "revision": revision}


def _where(name: str, source: HubSet, mirror: str | None) -> str:
    looked = "" if mirror is None else "; the mirror has none of its files"
    file = source.file or f"{name}.jsonl"
    if source.repository is None:
        return f"{name}: can only be read from a mirror ({file}){looked}"
    return (
        f"{name}: revisions has no commit of {source.repository}; put it there (40 hexadecimal "
        f"digits), or name a folder with a local copy in `mirror` ({file}){looked}"
    )


def _mirror_file(folder: Path, name: str, source: HubSet) -> Path | None:
    stems = [f"{name}{part}" for part in ("", f"_{source.split}")]
    names = [f"{stem}.{kind}" for stem in stems for kind in ("jsonl", "json", "txt")]
    names += [source.file] if source.file else []
    found = [
        folder / (n + end) for n in names for end in ("", ".gz") if (folder / (n + end)).is_file()
    ]
    if len(found) > 1:
        raise UserError(f"mirror: {folder}: {name}: found {[p.name for p in found]}, allowed: one")
    return found[0] if found else None


def _read_file(path: Path) -> list[Row]:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
        kind = path.name.removesuffix(".gz").rpartition(".")[2]
        if kind == "txt":
            return [{"text": text}]
        rows = (
            [json.loads(line) for line in text.split("\n") if line]
            if kind == "jsonl"
            else [json.loads(text)]
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error})") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: found a row that is no object; allowed: JSON objects")
    return rows


def _load(path: str, name: str, source: HubSet, revision: str | None) -> list[Row]:
    from datasets import load_dataset

    try:
        options = {"name": source.subset, "split": source.split, "revision": revision}
        return [dict(row) for row in load_dataset(path, **options)]
    except Exception as error:  # the library, the hub client and the readers raise their own kinds
        hint = "; without the hub, name a local copy in `mirror`" if revision else ""
        raise UserError(f"{name}: cannot read {path} ({error}){hint}") from error


def require_columns(name: str, row: Row, columns: Sequence[str]) -> None:
    """Raise UserError unless the row has all columns."""
    missing = [column for column in columns if column not in row]
    if missing:
        raise UserError(f"{name}: found columns {sorted(row)}; missing: {', '.join(missing)}")
