"""Small local stand-ins for what the data builders fetch: wheels, Debian packages, corpora."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from forgetmenot.data.documents import CorpusWriter
from forgetmenot.files import sha256_file, write_json

ADDRESS = Path(__file__).parents[1] / "fixtures" / "address_1790.txt"


@pytest.fixture
def make_wheel(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Writes a valid wheel into a wheelhouse; gives the options that name it."""

    def make(name: str, version: str, members: dict[str, bytes]) -> dict[str, str]:
        wheelhouse = tmp_path / "wheelhouse"
        wheelhouse.mkdir(exist_ok=True)
        module = name.replace("-", "_")
        path = wheelhouse / f"{module}-{version}-py3-none-any.whl"
        info = f"{module}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        tags = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
            archive.writestr(f"{info}/METADATA", metadata)
            archive.writestr(f"{info}/WHEEL", tags)
            archive.writestr(f"{info}/RECORD", "")
        return {
            "version": version,
            "sha256": sha256_file(path),
            "wheelhouse": str(wheelhouse),
        }

    return make


@pytest.fixture
def make_deb(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Writes a .deb, an ar archive around data.tar; gives the options that name it."""

    def make(members: dict[str, bytes], compression: str = "xz") -> dict[str, str]:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode=f"w:{compression}") as archive:
            for member, content in members.items():
                info = tarfile.TarInfo(f"./{member}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        end = f".{compression}" if compression else ""
        files = {
            "debian-binary": b"2.0\n",
            "control.tar": b"odd",
            f"data.tar{end}": data.getvalue(),
        }
        path = tmp_path / "toy_1.2-3_all.deb"
        with path.open("wb") as file:
            file.write(b"!<arch>\n")
            for name, content in files.items():
                file.write(
                    f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
                )
                file.write(content + b"\n" * (len(content) % 2))
        return {"version": "1.2-3", "sha256": sha256_file(path), "archive": str(path)}

    return make


@pytest.fixture(scope="session")
def paragraphs() -> list[str]:
    """Paragraphs of the first annual address of 1790: real English prose."""
    return ADDRESS.read_text(encoding="utf-8").strip().split("\n\n")


@pytest.fixture
def corpus(tmp_path: Path, paragraphs: list[str]) -> Path:
    """A corpus folder with each paragraph as a document."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    with CorpusWriter(folder, heldout_share=0.3) as writer:
        for number, text in enumerate(paragraphs):
            writer.add({"id": f"address/{number}", "text": text, "source": "address"})
        meta = writer.meta()
    write_json(folder / "meta.json", meta | {"origins": {"address": {"licence": "public"}}})
    return folder


@pytest.fixture
def read_lines() -> Callable[[Path], list[dict[str, object]]]:
    """Reads a JSON-lines file."""

    def read(path: Path) -> list[dict[str, object]]:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]

    return read
