"""A finite sample of training sequences as text, to train on without this project's code."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forgetmenot.data.prosg.batch import IGNORED, training_sequence
from forgetmenot.data.prosg.items import Cell
from forgetmenot.data.prosg.world import World
from forgetmenot.data.sampling import sample_rng
from forgetmenot.files import write_text

COLUMNS: dict[str, str | list[str]] = {
    "id": "string",
    "seed": "string",
    "mode": "string",
    "facts": "int64",
    "prompt": "string",
    "body": "string",
    "scored": ["int64"],
    "sha256": "string",
}
"""Columns and their types; `scored`: places, from 0, of the words of the body to be predicted."""


def write_sequences(
    path: Path,
    world: World,
    cells: Sequence[Cell],
    modes: Sequence[str],
    distances: np.ndarray,
    probes: int,
    samples: int,
) -> None:
    """`samples` lines of JSON with `COLUMNS`; the name of the file is part of every seed.

    Each sequence draws its number of facts and its longest distance, as `prosg_pf.Stream` does.
    The file "validation" takes its text from the part that is kept for evaluation.
    """
    name = path.stem
    rows = _rows(name, world, cells, modes, distances, probes, samples)
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def _rows(
    name: str,
    world: World,
    cells: Sequence[Cell],
    modes: Sequence[str],
    distances: np.ndarray,
    probes: int,
    samples: int,
) -> Iterator[dict[str, Any]]:
    for index in range(samples):
        seed = world.settings["seed"]
        rng = sample_rng(seed, "prosg_pf", name, index)
        cell = cells[int(rng.integers(len(cells)))]
        horizon = rng.integers(min(probes, len(distances)), len(distances) + 1)
        mode, prompt, body, labels = training_sequence(
            rng, world, cell, modes, distances[:horizon], probes, held=name == "validation"
        )
        text = {"prompt": world.text(prompt), "body": world.text(body)}
        rendered = json.dumps([text["prompt"], text["body"]])
        yield {
            "id": f"{name}-{index:06d}",
            "seed": json.dumps([seed, name, index]),
            "mode": mode,
            "facts": cell.facts,
            **text,
            "scored": (np.flatnonzero(labels != IGNORED) + 1).tolist(),
            "sha256": hashlib.sha256(rendered.encode()).hexdigest(),
        }
