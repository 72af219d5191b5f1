"""The built folder as others see it: loaded by `datasets`, without this project's code."""

import hashlib
import json
from pathlib import Path

import pytest

from forgetmenot.data import prosg_pf
from forgetmenot.data.prosg.evalset import file_name, read_records
from forgetmenot.data.prosg.world import World

SET = prosg_pf.Options(
    entities=32,
    relations=4,
    values=16,
    templates=4,
    attributes=4,
    attribute_values=16,
    triggers=16,
    codes=16,
    keywords=16,
    filler_words=64,
    filler_classes=8,
    filler_tokens=20_000,
    modes=["interfering", "self", "task"],
    facts=[4, 8],
    dense_facts=[16],
    rules=3,
    personas=0,
    distances=[0, 32, 64],
    long_distances=[0, 300],
    samples=5,
    train_samples=20,
    validation_samples=6,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prosg_pf")
    prosg_pf.build(SET, {}, folder)
    return folder


def test_datasets_loads_every_configuration(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert datasets.get_dataset_config_names(str(built)) == ["train", *SET.modes, "rules"]

    default = datasets.load_dataset(str(built))
    assert {name: len(split) for name, split in default.items()} == {"train": 20, "validation": 6}
    row = default["train"][0]
    words = row["body"].split()
    known = set(row["prompt"].split())
    assert row["scored"]
    assert {words[place] for place in row["scored"]} <= known

    for mode in SET.modes:
        loaded = datasets.load_dataset(str(built), mode)
        assert set(loaded) == {name.replace("-", "_") for name in SET.splits}
        for split in SET.splits:
            sizes = SET.dense_facts if split == "dense" else SET.facts
            records = [r for n in sizes for r in read_records(built, split, mode, n)]
            rows = sorted(loaded[split.replace("-", "_")], key=lambda row: row["id"])
            for record, row in zip(sorted(records, key=lambda r: r.id), rows, strict=True):
                assert row["prompt"] == record.prompt
                assert row["body"] == record.body
                assert row["questions"] == [probe.question for probe in record.probes]
                assert row["answers"] == [probe.answer for probe in record.probes]
                assert row["rule_say"] == [rule.say for rule in record.rules]
                assert row["sha256"] == record.sha256
    rules = datasets.load_dataset(str(built), "rules", split="examples")
    assert all(row["accepted"] == ["follows"] for row in rules)


def test_the_card_describes_what_was_built(built: Path) -> None:
    card = (built / "README.md").read_text()
    assert card.startswith("---\npretty_name: ProSG-PF\n")
    for mode in SET.modes:
        assert f"| `{mode}` |" in card
    assert "`neutral`" not in card
    assert f"{len(World.load(built).tokens)} in `vocab.json`" in card
    assert "license: mit" in card


def test_seeds_and_hashes_of_every_file(built: Path) -> None:
    listed = json.loads((built / "seeds.json").read_text())
    present = {str(path.relative_to(built)) for path in built.rglob("*") if path.is_file()}
    assert set(listed["files"]) == present - {"README.md", "seeds.json"}
    for name, entry in listed["files"].items():
        assert entry["sha256"] == hashlib.sha256((built / name).read_bytes()).hexdigest()
    entry = listed["files"][file_name("iid", "task", 4)]
    records = read_records(built, "iid", "task", 4)
    assert entry["rows"] == len(records) == SET.samples
    assert (entry["first_seed"], entry["last_seed"]) == (records[0].seed, records[-1].seed)


def test_training_sequences_are_reproducible_and_apart(built: Path, tmp_path: Path) -> None:
    prosg_pf.build(SET, {}, tmp_path)
    for name in ("train.jsonl", "validation.jsonl"):
        assert (built / name).read_bytes() == (tmp_path / name).read_bytes()
    train, validation = (
        [json.loads(line) for line in (built / name).read_text().splitlines()]
        for name in ("train.jsonl", "validation.jsonl")
    )
    assert {row["mode"] for row in train} == {"interfering", "task"}
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in validation}
    rendered = json.dumps([train[0]["prompt"], train[0]["body"]])
    assert train[0]["sha256"] == hashlib.sha256(rendered.encode()).hexdigest()
