"""Rows of a large dataset on the hub at a pinned revision, or of a local copy, as a stream."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetmenot.errors import UserError

# Kinds of file that a mirror may hold: the loader of `datasets` and the endings it is used for.
KINDS = {"parquet": (".parquet",), "json": (".jsonl", ".jsonl.gz", ".json"), "csv": (".csv",)}


@dataclass(frozen=True)
class Source:
    """A dataset repository: its configuration and split, and a word in the names of their files."""

    repository: str
    split: str
    configuration: str | None = None
    file_word: str = ""


def rows(
    builder: str, source: Source, revision: str | None, mirror: str | None
) -> Iterator[dict[str, Any]]:
    """The rows as a stream, in constant memory. `mirror`: a folder to read instead of the hub.

    Raises UserError when neither a revision nor a mirror is named, and when reading fails.
    """
    from datasets import load_dataset

    if mirror is not None:
        kind, files = mirror_files(Path(mirror), source.file_word)
        where = f"mirror {mirror}"
        arguments: dict[str, Any] = {"path": kind, "split": "train"}
        arguments["data_files"] = [str(file) for file in files]
    else:
        require_revision(source.repository, revision)
        where = f"{source.repository} at {revision} on the hub"
        arguments = {"path": source.repository, "name": source.configuration}
        arguments |= {"revision": revision, "split": source.split}
    try:
        yield from load_dataset(**arguments, streaming=True)
    except Exception as error:  # the library, the hub client and the readers raise their own kinds
        hint = "" if mirror else "; without the hub, name a local copy in `mirror`"
        raise UserError(f"{builder}: cannot read {where} ({error}){hint}") from error


def require_revision(repository: str, revision: str | None) -> None:
    """Raise UserError unless `revision` is a commit: a branch name would move."""
    if revision is None:
        raise UserError(
            f"revision: found null, and no commit of {repository} is known to this project; put "
            "the 40 hexadecimal digits of one, from the dataset's page (Files, History), into the "
            "option `revision`, or a local copy into `mirror`"
        )


def mirror_files(mirror: Path, word: str) -> tuple[str, list[Path]]:
    """Kind and paths of the data files below `mirror` that have `word` in their names.

    Raises UserError unless there are some, all of one kind.
    """
    named = [path for path in sorted(mirror.rglob("*")) if word in path.name and path.is_file()]
    found = {kind: _ending(named, endings) for kind, endings in KINDS.items()}
    kinds = [kind for kind, files in found.items() if files]
    if len(kinds) != 1:
        raise UserError(
            f"mirror: {mirror} holds {' and '.join(kinds) or 'no'} data files with {word!r} in "
            f"their names, allowed: one kind of {', '.join(KINDS)}"
        )
    return kinds[0], found[kinds[0]]


def _ending(paths: Sequence[Path], endings: tuple[str, ...]) -> list[Path]:
    return [path for path in paths if path.name.endswith(endings)]
