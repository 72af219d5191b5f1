"""The folder of a builder of evaluation sets: a file a set, the tokenizer, and what is missing."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from forgetmenot.data.documents import fraction
from forgetmenot.data.hub_sets import Row, Unavailable
from forgetmenot.data.inputs import only_input
from forgetmenot.data.tokenizer_folder import read_tokenizer_meta
from forgetmenot.errors import UserError
from forgetmenot.files import write_json, write_text


def write_sets(
    builder: str,
    names: Sequence[str],
    read: Callable[[str], tuple[list[Row], dict[str, Any]]],
    inputs: dict[str, Path],
    out: Path,
    *,
    samples: int | None,
    skip_missing: bool,
) -> None:
    """Write <set>.jsonl, meta.json and the tokenizer's files (one of the inputs).

    `read` gives a set's rows, each with an "id", and what meta.json says of it; `samples` of them
    are drawn by a hash of their ids and keep their order. meta.json: the tokenizer's ids, "sets"
    and "skipped": {set: why it is not there}. Raises UserError for a set without rows, and
    Unavailable for one that cannot be had, unless those are to be skipped.
    """
    folder = only_input(builder, inputs, "tokenizer.json")
    meta = read_tokenizer_meta(folder)
    sets: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            rows, about = read(name)
        except Unavailable as error:
            if not skip_missing:
                raise
            skipped[name] = str(error)
            continue
        if not rows:
            raise UserError(f"{builder}: {name}: found no rows in it")
        rows = _drawn(rows, samples)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(out / f"{name}.jsonl", text)
        sets[name] = about | {"samples": len(rows)}
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / file, out / file)
    kept = {key: meta[key] for key in ("vocab_size", "bos_id", "eos_id", "pad_id")}
    write_json(out / "meta.json", kept | {"sets": sets, "skipped": skipped})


def _drawn(rows: list[Row], samples: int | None) -> list[Row]:
    """The rows whose lots come first, in their own order."""
    if samples is None:
        return rows
    lots = [fraction(row["id"], "evaluation") for row in rows]
    chosen = sorted(range(len(rows)), key=lots.__getitem__)[:samples]
    return [rows[index] for index in sorted(chosen)]
