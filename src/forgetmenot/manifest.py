"""Requests, manifests and stamps: what a job was asked, what it made, and whether that still holds.

A stage's folder holds its outputs, `manifest.json` (the request, input and output hashes, where it
came from) and `stamp.json` (one id without times, so a bit-identical rebuild has the same stamp).
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from forgetmenot.errors import UserError
from forgetmenot.files import sha256_file, sha256_json

MANIFEST = "manifest.json"
STAMP = "stamp.json"
# In a result that came from another machine: {output that stayed there: what is known of it}.
ABSENT = "absent.json"
# What decides the result. Paths, tracking and tags do not: they may change without a new run.
IDENTITY = ("stage", "name", "spec", "seed", "code")


def load_request(path: Path) -> dict[str, Any]:
    """Read a request file. Raises UserError when it is missing, unreadable or incomplete."""
    request = read_object(path, "a request, written by the workflow")
    needed = ("stage", "name", "out", "work", "inputs", "spec", "seed", "code", "code_roots")
    missing = [key for key in needed if key not in request]
    if missing:
        raise UserError(f"{path}: keys missing: {', '.join(missing)}; needed: {', '.join(needed)}")
    return request


def identity(request: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a request that decides its result."""
    named = {key: request.get(key) for key in IDENTITY}
    return {**named, "inputs": sorted(request["inputs"])}


def stamp_id(request: dict[str, Any], outputs: dict[str, Any], volatile: Collection[str]) -> str:
    """Return the id of a result: what was asked and what came out, less the `volatile` files.

    Volatile files are outputs such as a curve with wall times, which differ between equal runs.
    """
    steady = {name: entry for name, entry in outputs.items() if name not in volatile}
    return sha256_json([identity(request), steady])


def hash_outputs(folder: Path) -> dict[str, dict[str, Any]]:
    """Return {relative file: {"sha256", "bytes"}} for all files under `folder`."""
    own = (folder / MANIFEST, folder / STAMP)
    return {
        path.relative_to(folder).as_posix(): {
            "sha256": sha256_file(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path not in own
    }


def verify(folder: Path, *, whole: bool = True) -> dict[str, Any]:
    """Return the folder's manifest after checking every output against it.

    Without `whole` an output may lack that the folder lists as left on the machine that made it.
    Raises UserError naming the file and both hashes when an output was altered, cut off or lost.
    """
    manifest = read_object(folder / MANIFEST, "a manifest; run snakemake to build it")
    outputs = manifest.get("outputs")
    if not isinstance(outputs, dict) or "id" not in manifest:
        raise UserError(f"{folder / MANIFEST}: keys missing: id, outputs; delete {folder}")
    elsewhere = absent(folder)
    for name, entry in outputs.items():
        path = folder / name
        if name in elsewhere and not path.exists():
            if not whole:
                continue
            raise UserError(
                f"{path}: it stayed on the machine that made it (see docs/report.md). Delete "
                f"{folder} and run snakemake to make it here"
            )
        found = sha256_file(path) if path.is_file() else "no file"
        if found != entry["sha256"]:
            raise UserError(
                f"{path}: found sha256 {found}; its manifest says {entry['sha256']}. "
                f"Delete {folder} and run snakemake again to rebuild it"
            )
    return manifest


def absent(folder: Path) -> dict[str, Any]:
    """Return the outputs that stayed on the machine that made them, and what is known of each."""
    path = folder / ABSENT
    return read_object(path, "the list of absent outputs") if path.exists() else {}


def read_object(path: Path, expected: str) -> dict[str, Any]:
    """Read a JSON object. Raises UserError with the file's name and what was `expected`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: found no file; expected {expected}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: found unreadable JSON ({error}); expected {expected}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: found a {type(value).__name__}; expected {expected}")
    return value
