import gzip
import json

import pytest

from forgetmenot.data import jargon
from forgetmenot.errors import UserError

FILE = """Table of Contents

   Chapter of nothing

Chapter\u00a01.\u00a0Hacker Slang

   This document is a collection of slang terms used by hackers, that is by
   {people}.

Verb Doubling

   A standard construction.

Glossary

  G

   gonk

   gonk out

   :gonk: /gonk/, vi.,n.

   1. [prob. from {gonkulator}.] To prevaricate or to embellish the truth beyond
   any “recognition”.

       Indented speech is kept, for it is prose
       like any other.

       if (x == 1) { y[2] += 3; }

   │ a │ b │

   :gonk out: n.

   See {gonk}.

  H

   hack

Appendix\u00a0A.\u00a0Folklore

   Table of Contents

   The Story

   This appendix contains several legends and fables that illuminate
   the meaning.

Bibliography

   A book."""


def test_documents_and_meta(make_deb, read_lines, tmp_path):
    deb = make_deb({jargon.MEMBER: gzip.compress(FILE.encode())})
    jargon.build(jargon.Options(**deb), {}, tmp_path)
    documents = read_lines(tmp_path / "documents.jsonl")
    # Neither tables of contents and lists of terms, nor entries that only refer to others.
    assert [document["text"] for document in documents] == [
        "Hacker Slang\n\nThis document is a collection of slang terms used by hackers, that is by "
        "people.\n\nVerb Doubling\n\nA standard construction.",
        "gonk (vi.,n.)\n\n1. [prob. from gonkulator.] To prevaricate or to embellish the truth "
        "beyond any “recognition”.\n\nIndented speech is kept, for it is prose like any other.",
        "Folklore\n\nThis appendix contains several legends and fables that illuminate "
        "the meaning.",
    ]
    assert documents[0]["id"] == "jargon/1"
    assert {document["source"] for document in documents} == {"jargon"}
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["documents"], meta["package"]) == (3, "jargon-text=1.2-3")
    assert meta["licence"] == "public domain"
    assert "Jargon File" in meta["citation"]


def test_a_file_without_entries_is_refused(make_deb, tmp_path):
    deb = make_deb({jargon.MEMBER: gzip.compress(b"text")})
    with pytest.raises(UserError, match="found no entry like :term: and no chapter"):
        jargon.build(jargon.Options(**deb), {}, tmp_path)
    with pytest.raises(UserError, match=r"sha256 is .*, expected 00"):
        jargon.build(jargon.Options(archive=deb["archive"], sha256="00"), {}, tmp_path)
