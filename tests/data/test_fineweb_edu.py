import gzip
import json

import pytest

from forgetmenot.data import fineweb_edu
from forgetmenot.data.documents import read_documents
from forgetmenot.errors import UserError


@pytest.fixture(autouse=True)
def local_cache(monkeypatch, tmp_path):
    """Keep the loader's caches inside the test, and the hub out of reach."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def rows(count, first=0):
    return [
        {"text": f"Document {n}: naïve\u2028text.", "id": f"<urn:uuid:{n}>", "score": 3.5}
        for n in range(first, first + count)
    ]


def write_parquet(path, values):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), path, row_group_size=10)


def build(tmp_path, mirror, **options):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    chosen = fineweb_edu.Options(mirror=str(mirror), **({"heldout_share": 0.2} | options))
    fineweb_edu.build(chosen, {}, out)
    splits = {name: list(read_documents(out / f"{name}.jsonl")) for name in ("train", "heldout")}
    return splits, json.loads((out / "meta.json").read_text())


def test_parquet_mirror_becomes_a_corpus(tmp_path):
    mirror = tmp_path / "mirror"
    write_parquet(mirror / "000_00000.parquet", rows(60))
    write_parquet(mirror / "001_00000.parquet", [*rows(40, first=60), {"text": " \n", "id": "e"}])
    splits, meta = build(tmp_path, mirror)
    found = {document["id"]: document["text"] for s in splits.values() for document in s}
    assert found == {f"fineweb_edu/{row['id']}": row["text"] for row in rows(100)}
    assert len(splits["train"]) + len(splits["heldout"]) == 100
    assert 5 <= len(splits["heldout"]) <= 40
    assert meta["splits"]["heldout"]["documents"] == len(splits["heldout"])
    assert meta["splits"]["train"]["words"] == 4 * len(splits["train"])
    origin = meta["origins"]["fineweb_edu"]
    assert "ODC-By" in origin["licence"]
    # The files of a mirror prove no revision, so none is claimed.
    assert origin["mirror"] is True
    assert "revision" not in origin


def test_the_split_does_not_depend_on_how_much_is_read(tmp_path):
    write_parquet(tmp_path / "mirror" / "a.parquet", rows(100))
    whole, _ = build(tmp_path, tmp_path / "mirror")
    part, _ = build(tmp_path, tmp_path / "mirror", max_documents=50)
    assert sum(map(len, part.values())) == 50
    for split, documents in part.items():
        assert documents == whole[split][: len(documents)]


def test_json_lines_mirror_plain_and_compressed(tmp_path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    lines = [json.dumps({"text": row["text"]}) + "\n" for row in rows(60)]
    (mirror / "a.jsonl").write_text("".join(lines[:30]), encoding="utf-8")
    (mirror / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[30:]).encode()))
    splits, _ = build(tmp_path, mirror)
    found = {document["id"]: document["text"] for s in splits.values() for document in s}
    assert found == {f"fineweb_edu/row {n}": row["text"] for n, row in enumerate(rows(60))}


def test_a_copy_of_the_whole_repository_gives_the_chosen_sample(tmp_path):
    mirror = tmp_path / "mirror"
    write_parquet(mirror / "sample" / "10BT" / "a.parquet", rows(30))
    write_parquet(mirror / "sample" / "100BT" / "a.parquet", rows(45, first=200))
    ten, _ = build(tmp_path, mirror)
    hundred, meta = build(tmp_path, mirror, subset="sample-100BT")
    assert sum(map(len, ten.values())) == 30
    assert sum(map(len, hundred.values())) == 45
    assert meta["origins"]["fineweb_edu"]["subset"] == "sample-100BT"


def test_unusable_mirrors_are_named(tmp_path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    with pytest.raises(UserError, match=r"mirror: .*mirror holds no data files"):
        build(tmp_path, mirror)
    write_parquet(mirror / "a.parquet", [{"content": "x"}])
    with pytest.raises(UserError, match=r"row 0 has no text; its columns are \['content'\]"):
        build(tmp_path, mirror)
    (mirror / "a.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match="parquet and json data files"):
        build(tmp_path, mirror)
    (mirror / "a.jsonl").unlink()
    (mirror / "a.parquet").write_bytes((mirror / "a.parquet").read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot read mirror"):
        build(tmp_path, mirror)


def test_the_hub_is_asked_for_the_pinned_revision_as_a_stream(tmp_path, monkeypatch):
    asked = []

    def load_dataset(**arguments):
        asked.append(arguments)
        return iter(rows(40))

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    options = fineweb_edu.Options(revision="a" * 40, heldout_share=0.2, max_documents=30)
    fineweb_edu.build(options, {}, tmp_path)
    (arguments,) = asked
    assert arguments == {
        "path": "HuggingFaceFW/fineweb-edu",
        "name": "sample-10BT",
        "revision": "a" * 40,
        "split": "train",
        "streaming": True,
    }
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["origins"]["fineweb_edu"]["revision"] == "a" * 40


def test_an_unreachable_hub_points_to_the_mirror_option(tmp_path):
    with pytest.raises(UserError, match=r"cannot read HuggingFaceFW/fineweb-edu at .*`mirror`"):
        fineweb_edu.build(fineweb_edu.Options(), {}, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"revision": "main"}, "revision: found 'main', allowed: a commit of 40"),
        ({"revision": "A" * 40}, "revision: found"),
        ({"max_documents": 1}, "max_documents: found 1"),
        ({"heldout_share": 0.0}, "heldout_share: found 0.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        fineweb_edu.Options(**options)
