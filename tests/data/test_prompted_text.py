"""Public prompted texts, read from small made copies in the columns of the real datasets."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from forgetmenot.data import prompted_text
from forgetmenot.data.documents import read_documents
from forgetmenot.errors import UserError

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def local_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the loader's caches inside the test, and the hub out of reach."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def write_parquet(path: Path, rows: Rows) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def multifaceted(mirror: Path) -> None:
    """Twenty-one rows: seven instructions under three system messages each."""
    wish = {"dimension": "style", "subdimension": "tone", "preference": "dry", "description": "d"}
    rows = [
        {
            "main_source": "made",
            "original_source": "made",
            "preference_set": [wish, wish],
            "system": f"You are helper {n % 3}.",
            "prompt": f"Tell me of topic {n // 3}.",
            "output": f"Answer {n}.",
        }
        for n in range(21)
    ]
    write_parquet(mirror / "data" / "train-00000-of-00001.parquet", rows)


def persona_chat(mirror: Path) -> None:
    folder = mirror / "data"
    folder.mkdir(parents=True)
    for split, count in {"train": 20, "valid": 3}.items():
        with (folder / f"Synthetic-Persona-Chat_{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            columns = ["user 1 personas", "user 2 personas", "Best Generated Conversation"]
            writer.writerow(columns)
            for n in range(count):
                talk = f"User 1: Hi, {split} {n}!\nUser 2: Hello.\nMore, even.\nUser 1: Bye."
                writer.writerow([f"I am {n}.", f"I own {n} cats.\nI ski, at times.", talk])


def tulu(mirror: Path) -> None:
    rows = [
        {
            "id": f"personas_IF_{n}",
            "prompt": f"Write {n + 20} words about tea in lower case.",
            "messages": [
                {"content": f"Write {n + 20} words about tea in lower case.", "role": "user"},
                {"content": f"tea is {n}.", "role": "assistant"},
            ],
            "constraints": ["length constraints:number of words", "change case:lowercase"],
        }
        for n in range(20)
    ]
    write_parquet(mirror / "data" / "train-00000-of-00001.parquet", rows)


def open_character(mirror: Path) -> None:
    mirror.mkdir()
    rows = [
        {
            "character_id": f"character-{n // 2}",
            "persona": "A baker.",
            "character": f"Name: Baker {n // 2}\nAge: 40",
            "question": f"Question {n}?",
            "character_answer": f"Answer {n}.",
        }
        for n in range(20)
    ]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (mirror / "synthetic_dialogue.jsonl").write_text(lines)
    (mirror / "synthetic_character.jsonl").write_text('{"character_id": "x", "persona": "p"}\n')


MADE = {
    "multifaceted": (multifaceted, 21),
    "synthetic-persona-chat": (persona_chat, 20),
    "tulu-personas": (tulu, 20),
    "open-character": (open_character, 20),
}


def build(tmp_path: Path, source: Any, **options: Any) -> tuple[dict[str, Rows], dict[str, Any]]:
    mirror, out = tmp_path / "mirror", tmp_path / "out"
    out.mkdir(exist_ok=True)
    if not mirror.exists():
        MADE[source][0](mirror)
    chosen = {"mirror": str(mirror), "heldout_share": 0.3, **options}
    prompted_text.build(prompted_text.Options(source=source, **chosen), {}, out)
    splits = {name: list(read_documents(out / f"{name}.jsonl")) for name in ("train", "heldout")}
    return splits, json.loads((out / "meta.json").read_text())


@pytest.mark.parametrize("source", list(MADE))
def test_every_source_becomes_one_form_of_record(tmp_path: Path, source: str) -> None:
    splits, meta = build(tmp_path, source)
    records = [*splits["train"], *splits["heldout"]]
    assert len(records) == MADE[source][1]
    for record in records:
        assert record["source"] == source
        assert record["id"].startswith(f"{source}/")
        assert record["turns"][-1]["text"]
        assert {turn["role"] for turn in record["turns"]} <= {"user", "assistant"}
        for part in (record["prompt"], *(turn["text"] for turn in record["turns"])):
            assert part in record["text"]
    origin = meta["origins"][source]
    # The files of a mirror prove no revision, so none is claimed.
    assert origin["mirror"] is True
    assert "revision" not in origin
    assert origin["licence"]
    groups = {split: {record["group"] for record in rows} for split, rows in splits.items()}
    assert not groups["train"] & groups["heldout"]


def first(tmp_path: Path, source: str) -> dict[str, Any]:
    splits, _ = build(tmp_path, source)
    return min([*splits["train"], *splits["heldout"]], key=lambda r: int(r["id"].split("/")[1]))


def said(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["text"]) for turn in record["turns"]]


def test_a_system_message_is_the_prompt(tmp_path: Path) -> None:
    record = first(tmp_path, "multifaceted")
    assert record["prompt"] == "You are helper 0."
    assert said(record) == [("user", "Tell me of topic 0."), ("assistant", "Answer 0.")]
    splits, _ = build(tmp_path, "multifaceted")
    assert len({record["group"] for rows in splits.values() for record in rows}) == 7


def test_the_second_speaker_has_the_persona(tmp_path: Path) -> None:
    record = first(tmp_path, "synthetic-persona-chat")
    assert record["prompt"] == "I own 0 cats.\nI ski, at times."
    talk = [("user", "Hi, train 0!"), ("assistant", "Hello.\nMore, even."), ("user", "Bye.")]
    assert said(record) == talk


def test_constraints_are_kept(tmp_path: Path) -> None:
    record = first(tmp_path, "tulu-personas")
    assert record["prompt"] == "Write 20 words about tea in lower case."
    assert said(record) == [("assistant", "tea is 0.")]
    assert record["constraints"] == ["length constraints:number of words", "change case:lowercase"]


def test_a_character_is_the_prompt(tmp_path: Path) -> None:
    record = first(tmp_path, "open-character")
    assert record["prompt"].startswith("Name: Baker 0")
    assert said(record) == [("user", "Question 0?"), ("assistant", "Answer 0.")]


def test_renamed_columns_and_a_shorter_copy(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    open_character(mirror)
    path = mirror / "synthetic_dialogue.jsonl"
    path.write_text(path.read_text().replace('"character_answer"', '"response"'))
    with pytest.raises(UserError, match=r"'character_answer' is NoneType.*'response'.*`columns`"):
        build(tmp_path, "open-character")
    renamed = {"character_answer": "response"}
    splits, _ = build(tmp_path, "open-character", columns=renamed, max_records=8)
    assert sum(map(len, splits.values())) == 8
    with pytest.raises(UserError, match="columns: found answer; allowed for open-character: "):
        build(tmp_path, "open-character", columns={"answer": "response"})


def test_records_without_an_answer_are_left_out(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    open_character(mirror)
    path = mirror / "synthetic_dialogue.jsonl"
    path.write_text(path.read_text().replace('"Answer 3."', '" "'))
    splits, _ = build(tmp_path, "open-character")
    assert sum(map(len, splits.values())) == 19


@pytest.mark.parametrize("source", list(MADE))
def test_the_hub_is_asked_for_a_pinned_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any
) -> None:
    asked: dict[str, Any] = {}

    def load_dataset(**arguments: Any) -> Rows:
        asked.update(arguments)
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    pinned = prompted_text.LAYOUTS[source].revision
    if pinned is None:
        with pytest.raises(UserError, match="revision: found null, and no commit of google/"):
            prompted_text.build(prompted_text.Options(source=source), {}, tmp_path)
        assert not asked
    revision = pinned or "0123456789abcdef" * 2 + "01234567"
    with pytest.raises(UserError, match=r"no route.*name a local copy in `mirror`"):
        prompted_text.build(prompted_text.Options(source, revision=revision), {}, tmp_path)
    assert asked["revision"] == revision
    assert asked["path"] == prompted_text.LAYOUTS[source].source.repository
    assert asked["streaming"] is True


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="revision: found 'main'"):
        prompted_text.Options("multifaceted", revision="main")
    empty = tmp_path / "mirror"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no data files with 'train' in their names"):
        build(tmp_path, "multifaceted")
    (empty / "train.csv").write_text("a\n1\n")
    (empty / "train.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="holds parquet and csv data files"):
        build(tmp_path, "multifaceted")
