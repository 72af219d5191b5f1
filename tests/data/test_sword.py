import json
import struct
import zlib

import pytest

from forgetmenot.data import sword
from forgetmenot.errors import UserError

PROSE = " ".join(["word"] * 20)
PSALM = (
    '<chapter n="{n}" osisID="Ps.{n}" sID="Ps.{n}"/> <title type="x-s">Psalm {n}</title> '
    '<div sID="g1" type="x-p"/><div type="x-milestone" sID="v"/>'
    '<hi type="bold">Verse 1.</hi> né &amp; '
    + PROSE
    + ' {{1}} <div eID="g1" type="x-p"/> <table><row><cell>a</cell></row></table>'
    '<title type="x-IS">Chapter Outline</title><div sID="g2"/>Tail.<div eID="g2"/>'
    '<title>WORKS UPON THE FIRST PSALM</title> <div/>A book. 1632 <chapter eID="Ps.{n}"/>'
)
TEXT = f"Word of God.<note>or, x</note> {PROSE}<l sID='a'/>verse<l eID='a'/>"
VERSES = (
    '<title>Genesis</title><chapter osisID="Gen.1" sID="Gen.1"/>'
    + TEXT
    + '<div canonical="true" eID="g" osisID="Gen" type="book"/><title>The Second</title>'
    '<chapter osisID="Exod.1" sID="Exod.1"/>See Genesis.<chapter eID="Exod.1"/>'
)


def module(blocks):
    """The index and the blocks of one testament, as a module has them."""
    index, packed = b"", b""
    for block in blocks:
        part = zlib.compress(block.encode())
        index += struct.pack("<III", len(packed), len(part), len(block.encode()))
        packed += part
    return index + struct.pack("<III", len(packed), 0, 0), packed


def files(folder, letter="c", **testaments):
    found = {}
    for testament, blocks in testaments.items():
        path = f"usr/share/sword/modules/{folder}/{testament}.{letter}"
        found[f"{path}zs"], found[f"{path}zz"] = module(blocks)
        found[f"{path}zv"] = b"\1" * 10
    return found


@pytest.fixture
def tdavid(make_deb):
    blocks = ["<milestone/>Preface", PSALM.format(n=1), PSALM.format(n=2)]
    return make_deb(files("comments/zcom/tdavid", ot=blocks, nt=[]))


def test_a_commentary_is_split_at_chapters(tdavid, read_lines, tmp_path):
    sword.build(sword.Options(**tdavid), {}, tmp_path)
    documents = read_lines(tmp_path / "documents.jsonl")
    assert [document["id"] for document in documents] == ["tdavid/Ps.1/1", "tdavid/Ps.2/1"]
    # No preface, note, table, mark of a note or list of books.
    assert documents[0] == {
        "id": "tdavid/Ps.1/1",
        "text": f"Psalm 1\n\nVerse 1. né & {PROSE}\n\nTail.",
        "source": "tdavid",
        "group": "tdavid/Ps.1",
    }
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["source"], meta["package"]) == ("tdavid", "sword-comm-tdavid=1.2-3")
    assert (meta["documents"], meta["sha256"]) == (2, tdavid["sha256"])
    assert "public domain" in meta["licence"]


def test_parts_of_a_chapter_are_held_out_together(make_deb, read_lines, tmp_path):
    psalm = PSALM.format(n=1).replace("Tail.", f"{PROSE}.")
    deb = make_deb(files("comments/zcom/tdavid", ot=[psalm]))
    sword.build(sword.Options(**deb, words=25), {}, tmp_path)
    documents = read_lines(tmp_path / "documents.jsonl")
    assert [document["id"] for document in documents] == ["tdavid/Ps.1/1", "tdavid/Ps.1/2"]
    assert {document["group"] for document in documents} == {"tdavid/Ps.1"}


def test_a_bible_is_one_group_and_short_references_are_left_out(make_deb, read_lines, tmp_path):
    deb = make_deb(files("texts/ztext/engWEB2015eb", "b", ot=[VERSES], nt=[VERSES[:-2]]))
    with pytest.raises(UserError, match=r"no file matches .*/mhcc/"):
        sword.build(sword.Options(work="mhcc", **deb), {}, tmp_path)
    deb = make_deb(files("texts/ztext/engWEB2015eb", "b", ot=[VERSES]))
    sword.build(sword.Options(work="web", **deb), {}, tmp_path)
    assert read_lines(tmp_path / "documents.jsonl") == [
        {
            "id": "web/Gen.1/1",
            "text": f"Word of God. {PROSE}\nverse",
            "source": "web",
            "group": "web",
        }
    ]


def test_a_damaged_module_is_named(make_deb, tmp_path):
    members = files("comments/zcom/tdavid", ot=[PSALM.format(n=1)])
    index, blocks = (name for name in members if not name.endswith("zv"))
    broken = make_deb(members | {blocks: b"no blocks"})
    with pytest.raises(UserError, match=r"ot\.czz: not blocks of text compressed with zlib"):
        sword.build(sword.Options(**broken), {}, tmp_path)
    broken = make_deb(members | {index: b"odd"})
    with pytest.raises(UserError, match=r"ot\.czz: not blocks of text .*12 bytes"):
        sword.build(sword.Options(**broken), {}, tmp_path)
    del members[blocks]
    with pytest.raises(UserError, match=r"ot\.czs is an index of .*ot\.czz, which is missing"):
        sword.build(sword.Options(**make_deb(members)), {}, tmp_path)
    empty = make_deb(files("comments/zcom/tdavid", ot=["text"]))
    with pytest.raises(UserError, match=r"sword-comm-tdavid: found no chapter in .*ot\.czs"):
        sword.build(sword.Options(**empty), {}, tmp_path)


def test_wrong_hash_and_wrong_options(tdavid, tmp_path):
    with pytest.raises(UserError, match=r"sha256 is .*, expected 00"):
        sword.build(sword.Options(archive=tdavid["archive"], sha256="00"), {}, tmp_path)
    with pytest.raises(ValueError, match="words: found 0, allowed: 1 or more"):
        sword.Options(words=0)
