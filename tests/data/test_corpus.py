import json

import pytest

from forgetmenot.data import corpus
from forgetmenot.data.documents import fraction, read_documents, write_documents
from forgetmenot.errors import UserError
from forgetmenot.files import write_json


def source(folder, name, texts, **extra):
    folder = folder / name
    folder.mkdir()
    documents = [
        {"id": f"{name}/{number}", "text": text, "source": name}
        | {key: value(number) for key, value in extra.items()}
        for number, text in enumerate(texts)
    ]
    write_documents(folder / "documents.jsonl", documents)
    write_json(folder / "meta.json", {"source": name, "licence": f"licence of {name}", "words": 1})
    return folder


def build(tmp_path, inputs, share=0.3):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    corpus.build(corpus.Options(heldout_share=share), inputs, out)
    splits = {name: list(read_documents(out / f"{name}.jsonl")) for name in ("train", "heldout")}
    return splits, json.loads((out / "meta.json").read_text()), out


def test_every_document_lands_once_and_is_counted(tmp_path):
    inputs = {
        "b": source(tmp_path, "b", [f"b text {n} é" for n in range(200)]),
        "a": source(tmp_path, "a", [f"line one\u2028line two {n}\n" for n in range(300)]),
    }
    splits, meta, _ = build(tmp_path, inputs)
    ids = [document["id"] for split in splits.values() for document in split]
    assert sorted(ids) == sorted([f"b/{n}" for n in range(200)] + [f"a/{n}" for n in range(300)])
    for name, documents in splits.items():
        texts = [document["text"] for document in documents]
        assert meta["splits"][name] == {
            "documents": len(texts),
            "words": sum(len(text.split()) for text in texts),
            "bytes": sum(len(text.encode()) for text in texts),
        }
        assert meta["sources"]["a"][name]["documents"] == sum(
            document["source"] == "a" for document in documents
        )
    # 500 lots of probability 0.3: 5 standard deviations are 51.
    assert abs(len(splits["heldout"]) - 150) < 52
    assert meta["origins"] == {"a": {"licence": "licence of a"}, "b": {"licence": "licence of b"}}


def test_the_split_of_a_document_depends_on_nothing_else(tmp_path):
    texts = [f"text {n}" for n in range(100)]
    both, _, _ = build(
        tmp_path, {"a": source(tmp_path, "a", texts), "b": source(tmp_path, "b", ["other"])}
    )
    alone, _, _ = build(tmp_path, {"renamed": tmp_path / "a"})
    for split in ("train", "heldout"):
        assert [d for d in both[split] if d["source"] == "a"] == alone[split]


def test_two_builds_are_bit_identical(tmp_path):
    inputs = {name: source(tmp_path, name, [f"{name} {n}" for n in range(50)]) for name in "ab"}
    _, _, out = build(tmp_path, inputs)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    build(tmp_path, dict(reversed(inputs.items())))
    assert first == {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_group_is_never_split(tmp_path):
    texts = [f"speech {n}" for n in range(120)]
    folder = source(tmp_path, "a", texts, group=lambda number: f"year {number // 3}")
    splits, _, _ = build(tmp_path, {"a": folder})
    groups = [{document["group"] for document in split} for split in splits.values()]
    assert groups[0]
    assert groups[1]
    assert not groups[0] & groups[1]


def test_duplicates_are_kept_once(tmp_path):
    inputs = {
        "a": source(tmp_path, "a", [f"text {n}" for n in range(20)]),
        "b": source(tmp_path, "b", [f"text {n}" for n in range(15, 30)]),
    }
    splits, meta, _ = build(tmp_path, inputs)
    texts = [document["text"] for split in splits.values() for document in split]
    assert sorted(texts) == sorted(f"text {n}" for n in range(30))
    assert meta["duplicates"] == 5


def test_lots_are_uniform_and_independent_between_purposes():
    lots = [(fraction(f"key {n}", "one"), fraction(f"key {n}", "two")) for n in range(4000)]
    for column in zip(*lots, strict=True):
        assert 0 <= min(column) < 0.01
        assert 0.99 < max(column) < 1
        assert abs(sum(column) / 4000 - 0.5) < 0.025  # 5 standard errors of 0.0046
    both = sum(one < 0.5 and two < 0.5 for one, two in lots)
    assert abs(both - 1000) < 140  # 5 standard deviations of 27


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_impossible_share(share):
    with pytest.raises(ValueError, match=f"heldout_share: found {share}"):
        corpus.Options(heldout_share=share)


def test_errors_name_the_cause(tmp_path):
    few = source(tmp_path, "few", ["only one"])
    with pytest.raises(UserError, match=r"(train|heldout): no document; heldout_share"):
        build(tmp_path, {"few": few})
    with pytest.raises(UserError, match="at least one dataset"):
        build(tmp_path, {})
    (tmp_path / "empty").mkdir()
    write_json(tmp_path / "empty" / "meta.json", {})
    with pytest.raises(UserError, match=r"input empty has no documents.jsonl"):
        build(tmp_path, {"empty": tmp_path / "empty"})
    with pytest.raises(UserError, match="two documents have the id few/0"):
        build(tmp_path, {"x": few, "y": few})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "text": "b"', "line 2: not JSON"),
        ('{"id": "a"}', 'line 2: expected an object with "id" and "text"'),
        ("[1]", 'line 2: expected an object with "id" and "text"'),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "documents.jsonl"
    path.write_text('{"id": "x", "text": "y", "source": "z"}\n' + line)
    with pytest.raises(UserError, match=f"documents.jsonl, {message}"):
        list(read_documents(path))


def test_text_that_is_no_unicode_is_refused(tmp_path):
    document = {"id": "broken", "text": "\ud800", "source": "x"}
    with pytest.raises(UserError, match="document broken: not valid Unicode"):
        write_documents(tmp_path / "documents.jsonl", [document])
