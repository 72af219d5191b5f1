import gzip
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from forgetmenot.data import language_sets, recall_suite
from forgetmenot.data.hub_sets import Unavailable
from forgetmenot.data.recall_rows import SETS, read_rows
from forgetmenot.data.tokenizer_folder import save_tokenizer
from forgetmenot.errors import UserError

CANARY = "canary GUID 1"
FDA = {
    "text": " Device: pump.\nSponsor: Acme Inc.\nUse: home. \n applicant:",
    "key": "applicant",
    "value": " Acme Inc.",
}
SWDE = {
    "text": "Film\nyear 1999\nSummary of information above...\n year:",
    "key": "year",
    "value": "1999",
}
CLOZE = {
    "context": "[DOC] [TLE] Rome\nIt was built in 753. The city was built in",
    "question": "The city was built in",
    "orig_question": "When was the city built:",
    "answers": ["753", "753 BC"],
}
SQUAD = {
    "text": "Rome was old. It was founded by",
    "context": "Rome was old. Question: who?",
    "question": "Who founded it?",
    "value": "Romulus",
}
SQUAD_DEV = {
    "canary": CANARY,
    "data": [
        {
            "title": "A",
            "paragraphs": [
                {
                    "context": "Rome is old. ",
                    "qas": [
                        {
                            "id": "q1",
                            "question": "What is old? ",
                            "answers": [{"text": "Rome"}, {"text": "Rome"}, {"text": "City"}],
                        }
                    ],
                }
            ],
        }
    ],
}
DROP = {
    "canary": CANARY,
    "examples": [
        {
            "input": f"Passage: They had 12 cows. \nQuestion: {q}? \nAnswer type: Number ",
            "target": t,
        }
        for q, t in [("How many", ["12."]), ("Sum", ["13."]), ("Tens", ["1."])]
    ],
}
NQ = {"examples": [{"input": "\nQuestion: who?\nContext: Ada did , it said .", "target": "Ada"}]}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    model = models.WordLevel({"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3}, unk_token="<unk>")
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    save_tokenizer(folder, made, "<s>", "</s>", "<pad>", {})
    return folder


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, row in {"fda": FDA, "nq_512": CLOZE, "piqa": {}}.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    for name in ("squad_dev", "drop_subset"):
        file = SETS[name].source.file
        assert file
        content = {"squad_dev": SQUAD_DEV, "drop_subset": DROP}[name]
        (folder / f"{file}.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    text = " \n = Rome = \n \n It is old . \n = = Name = = \n \n Old name \n = Ada = \n \n Wrote \n"
    (folder / "wikitext2_test.txt").write_text(text)
    (folder / "lambada_openai_test.jsonl").write_text('{"text": "one two"}\n' * 5)
    return folder


@pytest.mark.parametrize(
    ("name", "row", "context", "question", "intro", "text"),
    [
        (
            "fda",
            FDA,
            " Device: pump.\nSponsor: Acme Inc.\nUse: home.",
            "Applicant:",
            "Information about Applicant.",
            FDA["text"],
        ),
        ("swde", SWDE, "Film\nyear 1999", "Year:", "Information about Year.", SWDE["text"]),
        ("squad", SQUAD, "Rome was old.", "", "Who founded it?", SQUAD["text"]),
        (
            "triviaqa",
            CLOZE,
            "Rome\nIt was built in 753.",
            "The city was built in",
            "When was the city built",
            None,
        ),
    ],
)
def test_rows_of_the_hubs_sets(name, row, context, question, intro, text):
    (made,) = read_rows(name, [row])
    assert made["context"] == context
    assert made["question"] == question
    assert made["intro"] == intro
    assert made["text"] == text
    assert made["answers"] == (row["answers"] if "answers" in row else [row["value"]])


def test_stand_ins_keep_their_canary_and_their_names():
    (squad,) = read_rows("squad_dev", [SQUAD_DEV])
    assert squad == {
        "id": "squad_dev/q1",
        "text": None,
        "context": "Rome is old.",
        "question": "Question: What is old? Answer:",
        "intro": "What is old?",
        "answers": ["Rome", "City"],
        "canary": CANARY,
    }
    (drop,) = read_rows("drop_subset", [DROP])
    assert (drop["id"], drop["answers"]) == ("drop_subset/0", ["12"])
    assert drop["context"] == "They had 12 cows."
    (nq,) = read_rows("nq_swapped", [NQ])
    assert (nq["context"], nq["intro"]) == ("Ada did , it said .", "who?")


def test_a_folder_of_sets_names_what_is_missing(tokenizer, mirror, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    sets = ["fda", "swde", "nq_512", "squad_dev"]
    options = recall_suite.Options(sets, mirror=str(mirror), missing="skip")
    recall_suite.build(options, {"words": tokenizer}, out)
    meta = json.loads((out / "meta.json").read_text())
    assert list(meta["sets"]) == sorted(["fda", "nq_512", "squad_dev"])
    assert (meta["sets"]["nq_512"]["context"], meta["sets"]["fda"]["context"]) == (512, None)
    assert meta["sets"]["squad_dev"]["licence"] == "CC BY-SA 4.0 (SQuAD v1.1 dev)"
    assert list(meta["skipped"]) == ["swde"]
    assert "no commit of hazyresearch/based-swde-v2" in meta["skipped"]["swde"]
    assert meta["vocab_size"] == 4
    assert {path.name for path in out.glob("*.jsonl")} == {f"{name}.jsonl" for name in meta["sets"]}
    with pytest.raises(Unavailable, match="swde: revisions has no commit"):
        recall_suite.build(recall_suite.Options(sets, mirror=str(mirror)), {"w": tokenizer}, out)


def test_samples_are_drawn_by_their_ids(tokenizer, tmp_path):
    kept = []
    for count in (40, 10):
        out = tmp_path / str(count)
        out.mkdir()
        rows = [{**FDA, "value": str(number)} for number in range(40)]
        (out / "fda.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        made = tmp_path / f"made{count}"
        made.mkdir()
        options = recall_suite.Options(["fda"], mirror=str(out), samples=count)
        recall_suite.build(options, {"words": tokenizer}, made)
        kept.append([json.loads(line) for line in (made / "fda.jsonl").open()])
    assert len(kept[1]) == 10
    assert [row for row in kept[0] if row in kept[1]] == kept[1]
    assert kept[1] != kept[0][:10]


def test_factbook_comes_from_its_dataset(tokenizer, tmp_path):
    row = {"id": "au-0/Area", "context": "Area: 4 km\nName: Au", "key": "Area", "value": "4 km"}
    book, out = tmp_path / "book", tmp_path / "out"
    book.mkdir()
    out.mkdir()
    (book / "factbook.jsonl").write_text(json.dumps(row) + "\n")
    inputs = {"words": tokenizer, "book": book}
    recall_suite.build(recall_suite.Options(["factbook"]), inputs, out)
    (made,) = [json.loads(line) for line in (out / "factbook.jsonl").open()]
    assert made["id"] == "factbook/au-0/Area"
    assert made["text"] == "Area: 4 km\nName: Au\nArea:"
    assert (made["context"], made["question"]) == ("Area: 4 km\nName: Au", "Area:")
    with pytest.raises(UserError, match=r"needs exactly one input with factbook.jsonl, found \[\]"):
        recall_suite.build(recall_suite.Options(["factbook"]), {"words": tokenizer}, out)


def test_unfit_rows_are_named(tokenizer, mirror, tmp_path):
    with pytest.raises(UserError, match=r"fda: found columns \['text'\]; missing: key, value"):
        list(read_rows("fda", [{"text": "a"}]))
    with pytest.raises(UserError, match="drop_subset: example 0 is not of the form"):
        list(read_rows("drop_subset", [{"examples": [{"input": "x", "target": ["y"]}]}]))
    (mirror / "swde.jsonl").write_text("")
    with pytest.raises(UserError, match="recall_suite: swde: found no rows"):
        recall_suite.build(
            recall_suite.Options(["swde"], mirror=str(mirror)), {"words": tokenizer}, tmp_path
        )


def test_language_sets_keep_the_columns_of_the_hub(tokenizer, mirror, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    options = language_sets.Options(
        ["lambada_openai", "wikitext2_unk", "boolq"], mirror=str(mirror), missing="skip", samples=3
    )
    language_sets.build(options, {"words": tokenizer}, out)
    meta = json.loads((out / "meta.json").read_text())
    assert list(meta["skipped"]) == ["boolq"]
    assert meta["sets"]["lambada_openai"]["samples"] == 3
    pages = [json.loads(line)["page"] for line in (out / "wikitext2_unk.jsonl").open()]
    assert pages == [
        " = Rome = \n \n It is old . \n = = Name = = \n \n Old name \n",
        " = Ada = \n \n Wrote \n",
    ]
    with pytest.raises(UserError, match=r"piqa: found columns \[\]; missing: goal, sol1"):
        language_sets.build(
            language_sets.Options(["piqa"], mirror=str(mirror)), {"words": tokenizer}, out
        )


@pytest.mark.parametrize("builder", [recall_suite, language_sets])
def test_options_name_the_key(builder):
    name = "fda" if builder is recall_suite else "piqa"
    with pytest.raises(ValueError, match=r"sets: found \[\]"):
        builder.Options([])
    with pytest.raises(ValueError, match=r"revisions: found \['x'\], allowed"):
        builder.Options([name], revisions={"x": None})
    with pytest.raises(ValueError, match="samples: found 0"):
        builder.Options([name], samples=0)
