import json

import pytest

from forgetmenot.data import anarchism
from forgetmenot.errors import UserError

WORDS = " ".join(["word"] * 60)
PAGE = f"""<html><head><title>A.1 What? | Writers</title></head><body><div class="content">
<h1>Section A</h1><p><i>"Né"</i> [<b>Work</b>,
 p. 2] &amp; {WORDS}</p><h2>A.1.1 Short</h2><h2>A.1.2 Long</h2>
<blockquote><p>{WORDS}</p></blockquote><pre>code</pre><ul><li>item</ul><h2>A.1.3 Empty</h2>
<div id="book-navigation-2"><a href="secA2.html">A.2 next</a></div></div></body></html>"""


@pytest.fixture
def deb(make_deb):
    names = ("secA1", "secA10", "append41", "append131", "secAcon", "index", "links")
    folder = "usr/share/doc/anarchism/html"
    return make_deb({f"{folder}/{name}.html": PAGE.encode() for name in names})


def test_documents_and_meta(deb, read_lines, tmp_path):
    anarchism.build(anarchism.Options(**deb), {}, tmp_path)
    documents = read_lines(tmp_path / "documents.jsonl")
    # Neither contents, lists, nor the former version of a section.
    assert [document["id"] for document in documents] == [
        "anarchism/append41/1",
        "anarchism/append41/2",
        "anarchism/secA1/1",
        "anarchism/secA1/2",
        "anarchism/secA10/1",
        "anarchism/secA10/2",
    ]
    assert documents[2] == {
        "id": "anarchism/secA1/1",
        "text": f'Section A\n\n"Né" [Work, p. 2] & {WORDS}',
        "source": "anarchism",
        "group": "anarchism/secA1",
    }
    assert documents[3]["text"] == f"A.1.1 Short\n\nA.1.2 Long\n\n{WORDS}\n\nitem"
    # An appendix is held out with the section that it repeats.
    assert documents[0]["group"] == "anarchism/secH5"
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["source"], meta["package"]) == ("anarchism", "anarchism=1.2-3")
    assert (meta["documents"], meta["sha256"]) == (6, deb["sha256"])
    assert "GPL-2" in meta["licence"]


def test_long_questions_are_cut_between_paragraphs(deb, read_lines, tmp_path):
    anarchism.build(anarchism.Options(**deb, words=60), {}, tmp_path)
    texts = [document["text"] for document in read_lines(tmp_path / "documents.jsonl")]
    assert f"A.1.2 Long\n\n{WORDS}" in "\n\n".join(texts)
    assert len(texts) > 6


def test_a_package_without_essays_is_refused(make_deb, tmp_path):
    deb = make_deb({"usr/share/doc/anarchism/html/index.html": b""})
    with pytest.raises(UserError, match="none of the 1 pages is an essay"):
        anarchism.build(anarchism.Options(**deb), {}, tmp_path)
    with pytest.raises(UserError, match=r"sha256 is .*, expected 00"):
        anarchism.build(anarchism.Options(archive=deb["archive"], sha256="00"), {}, tmp_path)


def test_options_name_the_key():
    with pytest.raises(ValueError, match="words: found 0, allowed: 1 or more"):
        anarchism.Options(words=0)
