import json
import struct
import zlib

import pytest

from forgetmenot.data import jane_austen
from forgetmenot.errors import UserError

NOVEL = """NORTHANGER ABBEY

by

Jane Austen (1803)

ADVERTISEMENT

VOLUME I

CHAPTER 1


No one who had ever
seen _Catherine_ Morland.

            ***

[End volume one of this edition.]

   in verse
   it is said

CHAPTER II
The £ second.


FINIS

A NOTE ON THE TEXT

Written by an editor."""


def database(lines):
    """An .rdb with one vector of strings."""
    record = b"X\n" + struct.pack(">iiii", 3, 0, 0, 5) + b"UTF-8"
    record += struct.pack(">Ii", 0x10, len(lines))
    for line in (line.encode() for line in lines):
        record += struct.pack(">Ii", 0x40009 if line.isascii() else 0x8009, len(line)) + line
    return struct.pack(">I", len(record)) + zlib.compress(record)


def test_documents_and_meta(make_deb, read_lines, tmp_path):
    deb = make_deb({jane_austen.MEMBER: database(NOVEL.split("\n"))})
    jane_austen.build(jane_austen.Options(**deb), {}, tmp_path)
    assert read_lines(tmp_path / "documents.jsonl") == [
        {
            "id": "jane_austen/northanger_abbey/1",
            "text": "No one who had ever seen Catherine Morland.\n\nin verse\nit is said",
            "source": "jane_austen",
        },
        {
            "id": "jane_austen/northanger_abbey/2",
            "text": "The £ second.",
            "source": "jane_austen",
        },
    ]
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["source"], meta["documents"], meta["words"]) == ("jane_austen", 2, 16)
    assert meta["package"] == "r-cran-janeaustenr=1.2-3"
    assert meta["sha256"] == deb["sha256"]
    assert "public domain" in meta["licence"]


def test_chapters_that_a_test_set_quotes_are_left_out(make_deb, read_lines, tmp_path):
    chapters = [line for number in range(1, 34) for line in ("", f"CHAPTER {number}", "", "Text.")]
    deb = make_deb({jane_austen.MEMBER: database(["MANSFIELD PARK", *chapters])})
    jane_austen.build(jane_austen.Options(**deb), {}, tmp_path)
    found = {document["id"] for document in read_lines(tmp_path / "documents.jsonl")}
    assert len(found) == 31
    assert not found & {"jane_austen/mansfield_park/20", "jane_austen/mansfield_park/32"}


def test_what_holds_no_novel_is_refused(make_deb, tmp_path):
    deb = make_deb({jane_austen.MEMBER: b"\0\0\0\1odd"})
    with pytest.raises(UserError, match=r"Rdata\.rdb: byte 0: not a record"):
        jane_austen.build(jane_austen.Options(**deb), {}, tmp_path)
    deb = make_deb({jane_austen.MEMBER: database(["TITLE", "text"])})
    with pytest.raises(UserError, match="found no line like CHAPTER I"):
        jane_austen.build(jane_austen.Options(**deb), {}, tmp_path)
    with pytest.raises(UserError, match=r"sha256 is .*, expected 00"):
        jane_austen.build(jane_austen.Options(archive=deb["archive"], sha256="00"), {}, tmp_path)
