"""Finished results as small files: what a report needs of them, and what proves them.

Weights and built data stay where they were made; everything else travels. A result that arrives
verifies by its manifest and counts as done (see stage.py); a job that needs what stayed behind is
refused by name.
"""

import bz2
import gzip
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from forgetmenot import manifest
from forgetmenot.batch import REQUESTS, Jobs
from forgetmenot.errors import UserError
from forgetmenot.files import write_bytes, write_json
from forgetmenot.report.training import WEIGHTS, count_parameters

ROOTS = ("results", "data")
Member = tuple[str, bytes]
"""A file's path from the project's folder, and its content."""


def finished(scale: str) -> list[Path]:
    """Folders of a scale's finished jobs and of the data that they were made from, sorted."""
    found = {
        path.parent
        for path in Path("results", scale).rglob(manifest.MANIFEST)
        if not any(part.endswith((".partial", ".old")) for part in path.parts)
    }
    if not found:
        there = ", ".join(sorted(path.name for path in Path("results").glob("*"))) or "none"
        raise UserError(f"results/{scale}: found no finished job; scales with results: {there}")
    pending = list(found)
    while pending:
        job = pending.pop()
        expected = "its manifest, as results were made from it; put it back, or delete those"
        inputs = manifest.read_object(job / manifest.MANIFEST, expected)["inputs"]
        new = {Path(entry["path"]) for entry in inputs.values()} - found
        found |= new
        pending += new
    return sorted(found)


def unfinished(scale: str) -> tuple[int, int]:
    """How many jobs of a scale have no result, and how many have another than is asked for now.

    Another: of other options, other code or other inputs. Nothing is known without requests.
    """
    try:
        jobs = Jobs([f"results/{scale}"])
    except UserError:
        return 0, 0
    made = [Path(out, manifest.MANIFEST).exists() for out in jobs.asked if not jobs.is_done(out)]
    return made.count(False), made.count(True)


def members(folder: Path) -> Iterator[Member]:
    """The small files of one finished job, verified.

    Raises UserError for a job whose files do not match its manifest.
    """
    found = manifest.verify(folder, whole=False)
    away = manifest.absent(folder)
    for name in found["outputs"]:
        if name in away or found["stage"] == "data" or name == WEIGHTS:
            known = {"parameters": count_parameters(folder)} if name == WEIGHTS else {}
            away[name] = away.get(name) or known
        else:
            yield f"{folder.as_posix()}/{name}", (folder / name).read_bytes()
    for name in (manifest.MANIFEST, manifest.STAMP):
        yield f"{folder.as_posix()}/{name}", (folder / name).read_bytes()
    if away:
        text = json.dumps(away, indent=1, sort_keys=True) + "\n"
        yield f"{folder.as_posix()}/{manifest.ABSENT}", text.encode()


def pack(scale: str, archive: Path) -> int:
    """Write the small files of a scale's finished jobs to a .tar.gz; returns how many jobs."""
    folders = finished(scale)
    write_bytes(archive, _packed(folders))
    return len(folders)


def _packed(folders: Iterable[Path]) -> bytes:
    """The small files of finished jobs as a .tar.gz that another one may follow."""
    buffer = io.BytesIO()
    # No times and owners in it: the same results make the same archive.
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as stream:
        tar = tarfile.open(fileobj=stream, mode="w")  # noqa: SIM115 closing would mark the end
        for folder in folders:
            for member in members(folder):
                _add(tar, *member)
    return buffer.getvalue()


class Growing:
    """An archive that finished jobs are added to one by one, and that is whole at any time.

    `unpack` reads it as it reads one of `pack`. Raises UserError for a file that is there and no
    such archive.
    """

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.folders = (
            {_job(name, archive)[0] for name, _ in _read(archive)} if archive.exists() else set()
        )

    def add(self, folder: Path) -> None:
        """Add the small files of a finished job, and of jobs that it was made from.

        Raises UserError for a job whose files do not match its manifest.
        """
        if folder.as_posix() in self.folders:
            return
        found = manifest.read_object(folder / manifest.MANIFEST, "a manifest")
        for entry in found["inputs"].values():
            self.add(Path(entry["path"]))
        before = self.archive.read_bytes() if self.archive.exists() else b""
        # Written anew, since a kill while something is appended would spoil what is there.
        write_bytes(self.archive, before + _packed([folder]))
        self.folders.add(folder.as_posix())


def bundle(jobs: Jobs, archive: Path) -> tuple[int, int]:
    """Write what jobs need on another machine: their requests and the built data they read.

    Of data that they do not read themselves, but theirs was made from, the manifests go along.
    `archive` is a .tar.gz or a .tar.xz, which is smaller and takes longer. Returns how many jobs
    and how many whole datasets. Raises UserError for another name, for data that are not built or
    not as their manifest says, and for inputs that are no data and not among the jobs.
    """
    mode = archive.suffix.removeprefix(".")
    if mode not in ("gz", "xz"):
        raise UserError(
            f"bundle: found {archive.name!r}; allowed: names that end in .tar.gz, .tar.xz"
        )
    inputs = {folder for request in jobs.asked.values() for folder in request["inputs"].values()}
    whole = sorted(inputs - jobs.asked.keys())
    made = [folder for folder in whole if not folder.startswith("data/")]
    if made:
        raise UserError(f"bundle: {made[0]} is needed and not asked for; name it too")
    files = [REQUESTS / f"{out}.json" for out in jobs.asked]
    above: set[str] = set()
    for folder in whole:
        found = manifest.verify(Path(folder))
        files += [Path(folder, n) for n in (*found["outputs"], manifest.MANIFEST, manifest.STAMP)]
        above |= {entry["path"] for entry in found["inputs"].values()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{mode}") as tar:  # type: ignore[call-overload]
        for path in files:
            _add(tar, path.as_posix(), path.read_bytes())
        done = set(whole)
        while above - done:
            folder = min(above - done)
            done.add(folder)
            for member in members(Path(folder)):
                _add(tar, *member)
            inputs_above = manifest.read_object(Path(folder, manifest.MANIFEST), "a manifest")
            above |= {entry["path"] for entry in inputs_above["inputs"].values()}
    write_bytes(archive, buffer.getvalue())
    return len(jobs.asked), len(whole)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def unpack(source: Path) -> tuple[int, int, int]:
    """Put the results of an archive, or of a published folder, in their places.

    Returns how many were added, how many were there already, and how many of those added are not
    what is asked for here (other options or code), so that they will be made anew. Raises
    UserError, before anything is written, for a file that its manifest does not know as it is, for
    a place that is no result's and for a place that has another result.
    """
    jobs: dict[str, dict[str, bytes]] = {}
    for name, content in _read(source):
        folder, file = _job(name, source)
        jobs.setdefault(folder, {})[file] = content
    _gather(jobs)
    added = {}
    for folder, contents in jobs.items():
        record = _check(source, folder, contents)
        here = Path(folder, manifest.MANIFEST)
        if not here.exists():
            added[folder] = contents
        elif manifest.read_object(here, "a manifest").get("id") != record["id"]:
            raise UserError(
                f"{folder}: has another result than {source}; delete it first to have that one"
            )
    for folder, contents in added.items():
        for name, content in contents.items():
            if name not in (manifest.MANIFEST, manifest.STAMP):
                write_bytes(Path(folder, name), content)
        write_bytes(Path(folder, manifest.MANIFEST), contents[manifest.MANIFEST])
    return len(added), len(jobs) - len(added), _stamp(added)


def _stamp(added: Iterable[str]) -> int:
    """Write the stamps, last and with one time, so that none looks older than its inputs.

    Where another result than this one is asked for here, the stamp gets a time before the request,
    so that Snakemake makes the job anew; returns how many these are.
    """
    fit: list[Path] = []
    unfit: list[Path] = []
    for folder in added:
        record = manifest.read_object(Path(folder, manifest.MANIFEST), "a manifest")
        request = Path("work/requests", f"{folder}.json")
        asked = manifest.load_request(request) if request.exists() else record
        stamp = Path(folder, manifest.STAMP)
        write_json(stamp, {"id": record["id"]})
        (fit if manifest.identity(asked) == manifest.identity(record) else unfit).append(stamp)
    now = max((path.stat().st_mtime_ns for path in fit), default=0)
    for path in fit:
        os.utime(path, ns=(now, now))
    for path in unfit:
        os.utime(path, ns=(0, 0))
    return len(unfit)


def _read(source: Path) -> Iterator[Member]:
    if source.is_dir():
        for root in ROOTS:
            for path in sorted(source.joinpath(root).rglob("*")):
                if path.is_file():
                    name, content = path.relative_to(source).as_posix(), path.read_bytes()
                    if name.endswith(".bz2"):
                        name, content = name.removesuffix(".bz2"), bz2.decompress(content)
                    yield name, content
        return
    try:
        with tarfile.open(source, "r:gz") as tar:
            for entry in tar:
                stream = tar.extractfile(entry)
                if stream is not None:
                    yield entry.name, stream.read()
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{source}: not a whole archive of results ({error})") from None


def _job(name: str, source: Path) -> tuple[str, str]:
    """Folder and file of a member's path. Raises UserError for a path outside the results."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.parts[0] not in ROOTS:
        raise UserError(f"{source}: found {name!r}; allowed: paths below {', '.join(ROOTS)}")
    return path.parent.as_posix(), path.name


def _gather(jobs: dict[str, dict[str, bytes]]) -> None:
    """Join files of subfolders to the job above them: a job is where a manifest lies."""
    for folder in sorted(jobs, reverse=True):
        if manifest.MANIFEST not in jobs[folder]:
            path = PurePosixPath(folder)
            above = next((p.as_posix() for p in path.parents if p.as_posix() in jobs), None)
            if above is None:
                continue  # refused by _check
            relative = path.relative_to(above).as_posix()
            for file, content in jobs.pop(folder).items():
                jobs[above][f"{relative}/{file}"] = content


def _check(source: Path, folder: str, contents: dict[str, bytes]) -> dict[str, Any]:
    """The job's manifest, once every file agrees with it."""
    try:
        record: dict[str, Any] = json.loads(contents[manifest.MANIFEST])
        away = json.loads(contents.get(manifest.ABSENT, b"{}"))
        outputs, known = dict(record["outputs"]), {"id", "stage", "inputs"} <= set(record)
    except (KeyError, ValueError, TypeError):
        known = False
    if not known:
        raise UserError(f"{source}: {folder} has no readable {manifest.MANIFEST}")
    own = {manifest.MANIFEST, manifest.STAMP, manifest.ABSENT}
    found = {
        name: hashlib.sha256(content).hexdigest()
        for name, content in contents.items()
        if name not in own
    }
    for name in sorted({*found, *outputs} - (set(away) - set(found))):
        expected = outputs.get(name, {}).get("sha256", "no such output")
        if found.get(name, "no file") != expected:
            raise UserError(
                f"{source}: {folder}/{name}: found sha256 {found.get(name, 'no file')}; its "
                f"manifest says {expected}"
            )
    return record
