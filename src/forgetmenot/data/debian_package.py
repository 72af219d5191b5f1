"""Data files out of Debian packages: fetched by apt, checked by hash, read, never installed.

`apt-get download` needs no root and runs no script of the package. A .deb is an `ar` archive with
the files in its member data.tar, so neither dpkg nor ar is needed to read one.
"""

import fnmatch
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from forgetmenot.data.archive import Client, checked_archive
from forgetmenot.errors import UserError

APT = Client("apt", ("apt-get", "-qq", "download", "{}"), ".deb")
MAGIC = b"!<arch>\n"
HEADER = 60  # bytes before each member of an ar archive
COMPRESSIONS = ("", ".gz", ".xz")  # those that Python's own library reads


def read_debian_package(
    name: str, version: str, sha256: str, pattern: str, archive: str | None = None
) -> dict[str, bytes]:
    """Contents of the files of `name=version` whose path matches the glob `pattern`.

    Paths start with "usr/", and `*` also matches "/". `archive` is a local copy of the package's
    .deb, to use instead of apt. Keys are paths, sorted. Raises UserError if the package cannot be
    had, has another hash, is no .deb that can be read, or no file matches.
    """
    with checked_archive(APT, f"{name}={version}", sha256, archive) as path:
        return _read(path, pattern)


def _read(path: Path, pattern: str) -> dict[str, bytes]:
    # Read into memory, never written under the archive's own paths; links are not followed.
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(_data(path))) as archive:
        for member in archive.getmembers():
            name = member.name.removeprefix("./")
            if member.isfile() and fnmatch.fnmatchcase(name, pattern):
                file = archive.extractfile(member)
                assert file is not None  # a regular file
                found[name] = file.read()
    if not found:
        raise UserError(f"{path.name}: no file matches {pattern}")
    return dict(sorted(found.items()))


def _data(path: Path) -> bytes:
    """The tar archive in a .deb, still compressed."""
    content = path.read_bytes()
    if not content.startswith(MAGIC):
        raise UserError(f"{path.name}: not a .deb (an ar archive)")
    members = dict(_members(content))
    for name, member in members.items():
        if name.startswith("data.tar"):
            if name.removeprefix("data.tar") in COMPRESSIONS:
                return member
            allowed = ", ".join(f"data.tar{end}" for end in COMPRESSIONS)
            raise UserError(f"{path.name}: found {name}; allowed: {allowed}")
    raise UserError(f"{path.name}: no member data.tar; found {', '.join(members) or 'none'}")


def _members(content: bytes) -> Iterator[tuple[str, bytes]]:
    start = len(MAGIC)
    while start + HEADER <= len(content):
        name = content[start : start + 16].decode("ascii", "replace").strip().rstrip("/")
        size = int(content[start + 48 : start + 58])
        start += HEADER
        yield name, content[start : start + size]
        start += size + size % 2  # members start at even places
