"""Body modes of ProSG-PF: rules in force, real text, the model's own text; and no leaks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forgetmenot.data import prosg_pf
from forgetmenot.data.prosg.evalset import Record, draw_record, read_records
from forgetmenot.data.prosg.items import Cell
from forgetmenot.data.prosg.rules import (
    Compliance,
    Rule,
    accepts,
    compliance,
    written_lines,
)
from forgetmenot.data.prosg.templates import CUE, RULES
from forgetmenot.data.prosg.world import World
from forgetmenot.errors import UserError

SMALL = prosg_pf.Options(
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
    prose_words=8,
    prose_tokens=8000,
    splits=["iid"],
    modes=["neutral", "interfering", "real", "self", "task"],
    facts=[8],
    dense_facts=[],
    rules=6,
    personas=2,
    distances=[0, 32, 64, 300],
    long_distances=[],
    samples=40,
)
STREAM = prosg_pf.StreamOptions(facts=[8], distances=[0, 32, 64, 128], rules=6, personas=2)
SENTENCE = "No city\u2019s job is a city of what we know, and soror isn't. "


def write_corpus(folder: Path) -> Path:
    folder.mkdir()
    words = {}
    for split, documents in {"train": 60, "heldout": 8}.items():
        texts = [f"{split} number {n}. {SENTENCE * 20}" for n in range(documents)]
        lines = [json.dumps({"id": f"{split}/{n}", "text": t}) for n, t in enumerate(texts)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        words[split] = {"words": sum(len(text.split()) for text in texts)}
    meta = {"splits": words, "origins": {"made": {"licence": "public domain"}}}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prosg_pf")
    corpus = write_corpus(folder / "corpus")
    prosg_pf.build(SMALL, {"made": corpus}, folder / "set")
    return folder / "set"


@pytest.fixture(scope="module")
def world(built: Path) -> World:
    return World.load(built)


def test_task_bodies_follow_every_rule_of_their_prompt(built: Path) -> None:
    seen = set()
    for record in read_records(built, "iid", "task", 8):
        text = "\n".join(record.body)
        assert text.startswith(CUE)
        lines = written_lines(text)
        for rule in record.rules:
            assert rule.instruction in record.prompt
            assert accepts(rule, lines)
            seen.add(rule.kind)
        # The same words in another order follow no rule that could be broken by it.
        rng = np.random.default_rng(0)
        mixed = [rng.permutation(line).tolist() for line in lines]
        order = [r for r in record.rules if r.kind in ("trigger", "prefix", "format")]
        assert not any(accepts(rule, mixed) for rule in order)
    assert seen == set(RULES)


def test_task_bodies_do_not_follow_the_rules_of_another_prompt(built: Path) -> None:
    records = read_records(built, "iid", "task", 8)
    followed = asked = 0
    for record, other in zip(records, [*records[1:], records[0]], strict=True):
        lines = written_lines("\n".join(record.body))
        same = {(rule.when, rule.say) for rule in record.rules}
        rules = [r for r in other.rules if r.kind != "forbid" and (r.when, r.say) not in same]
        asked += len(rules)
        followed += sum(accepts(rule, lines) for rule in rules)
    assert asked > 100
    assert followed <= 0.02 * asked


def test_compliance_says_where_each_rule_was_followed() -> None:
    rules = [Rule("prefix", "", "", "x"), Rule("counter", "", "second", "v")]
    text = f"{CUE} x a b .\nx v .\nb a .\nx b"
    assert compliance(rules, text) == [
        Compliance("prefix", 3, True),
        Compliance("prefix", 7, True),
        Compliance("prefix", 10, False),
        Compliance("counter", 7, True),
    ]
    assert compliance(rules, text.removeprefix(f"{CUE} "))[0].position == 0


def test_training_labels_of_task_bodies_are_what_the_rules_ask_for(
    built: Path, world: World
) -> None:
    stream = prosg_pf.Stream(built, replace(STREAM, modes=["task"]))
    plain = prosg_pf.Stream(built, replace(STREAM, modes=["neutral"]))
    groups = [world.groups[g] for g in ("code", "keyword", "attribute_value")]
    checked = 0
    for key in range(5):
        batch, other = (s.batch(np.random.Generator(np.random.Philox(key=key)), 2000)
                        for s in (stream, plain))  # fmt: skip
        assert (batch["labels"] != -100).sum() > 3 * (other["labels"] != -100).sum()
        for ids, labels, prompt in zip(
            batch["input_ids"], batch["labels"], batch["prompt_ids"], strict=True
        ):
            places = np.flatnonzero(labels != -100)
            assert (labels[places] == ids[places + 1]).all()
            # Outside of questions such words stand only where a rule of the prompt put them.
            named = [i for i, w in enumerate(ids) if any(w in group for group in groups)]
            assert {place - 1 for place in named if place} <= set(places)
            assert {ids[place] for place in named} <= set(prompt)
            checked += len(named)
    assert checked > 500


def test_real_bodies_are_prose_without_words_of_the_world(built: Path, world: World) -> None:
    names = ("entity", "value", "attribute_value", "trigger", "code", "keyword", "filler")
    coined = {world.tokens[i] for name in names for i in world.groups[name]}
    assert "soror" in coined
    for record in read_records(built, "iid", "real", 8):
        text = " ".join(record.body)
        words = set(text.split())
        assert not words & coined
        # Known to the world, known to the prose alone, and too rare.
        assert {"city", "what", "<unk>"} <= words
        assert "train" not in words
    meta = json.loads((built / "meta.json").read_text())
    assert meta["prose"]["origins"] == {"made": {"licence": "public domain"}}
    assert 0.05 < meta["prose"]["unknown_share"] < 0.6
    assert len(world.groups["prose"]) == 1 + SMALL.prose_words


def test_real_text_of_evaluation_is_from_heldout_documents(built: Path, world: World) -> None:
    assert world.prose is not None
    held, trained = (world.prose.ids[list(world.prose.region(h))] for h in (True, False))
    assert len(trained) == 9 * len(held)
    heldout = world.ids.get("heldout", world.ids["<unk>"])
    assert world.text(held[:2]).split()[0] == world.tokens[heldout]


def test_a_world_is_the_same_with_and_without_prose(world: World) -> None:
    plain = World.create(world.settings)
    assert world.tokens[: len(plain.tokens)] == plain.tokens
    assert (world.filler.ids == plain.filler.ids).all()


def test_the_model_writes_the_body_of_mode_self(built: Path) -> None:
    records = read_records(built, "iid", "self", 8)
    neutral = read_records(built, "iid", "neutral", 8)
    assert all(record.body == [] for record in records)
    assert [r.prompt for r in records] == [r.prompt for r in neutral]
    assert [r.probes for r in records] == [r.probes for r in neutral]


def values(world: World, text: str) -> list[str]:
    pool = {world.tokens[i] for i in world.groups["value"]}
    return [word for word in text.split() if word in pool]


@pytest.mark.parametrize("mode", ["neutral", "interfering", "real", "task"])
def test_a_body_alone_is_at_chance(world: World, mode: str) -> None:
    """Guesses from the body without the prompt: what it says first, last and most."""
    cell = Cell("iid", 8, 6, 2, tuple(RULES))
    right = []
    for index in range(150):
        record = draw_record(world, cell, mode, [0, 120], 4, index)
        said = values(world, " ".join(record.body))
        if mode == "interfering":
            guesses = [said[0], said[-1], max(sorted(set(said)), key=said.count)]
        else:
            assert not said
            guesses = [world.tokens[world.groups["value"].start]]
        answers = [probe.answer for probe in record.probes if probe.kind == "fact"]
        right += [np.mean([guess == answer for guess in guesses for answer in answers])]
    error = np.std(right) / np.sqrt(len(right))
    assert abs(np.mean(right) - 1 / 16) < 4 * error


def test_the_prompt_of_another_sample_is_at_chance(world: World) -> None:
    """Where it speaks of the same entity and relation, its value is right one time in 16."""
    cell = Cell("iid", 8, 0, 0, ("trigger",))
    records = [draw_record(world, cell, "neutral", [0], 8, index) for index in range(300)]
    right = []
    for record, other in zip(records, [*records[1:], records[0]], strict=True):
        lines = [line.split() for line in other.prompt.splitlines()]
        for probe in record.probes:
            about = subject(world, probe.question)
            told = [values(world, " ".join(line)) for line in lines if about <= set(line)]
            right += [said[0] == probe.answer for said in told]
    assert len(right) > 100
    assert abs(np.mean(right) - 1 / 16) < 4 * np.sqrt(1 / 16 / len(right))


def subject(world: World, question: str) -> set[str]:
    ids = [*world.groups["entity"], *world.groups["relation"]]
    return set(question.split()) & {world.tokens[i] for i in ids}


def test_bad_requests_are_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs exactly one input with heldout\.jsonl"):
        prosg_pf.build(SMALL, {}, tmp_path)
    close = replace(SMALL, modes=["task"], distances=[0, 16])
    with pytest.raises(UserError, match=r"distances: found \[0, 16\], allowed with the modes"):
        prosg_pf.build(close, {}, tmp_path)
    prosg_pf.build(replace(SMALL, modes=["neutral"], samples=1), {}, tmp_path / "plain")
    with pytest.raises(UserError, match="modes: found 'real', but this dataset was built without"):
        prosg_pf.Stream(tmp_path / "plain", replace(STREAM, modes=["real"]))
    with pytest.raises(UserError, match="mode other than 'self'"):
        prosg_pf.build(replace(SMALL, modes=["self"], train_samples=1), {}, tmp_path / "own")


def test_records_know_their_rules(built: Path) -> None:
    record: Record = read_records(built, "iid", "neutral", 8)[0]
    asked = {p.answer for p in record.probes if p.kind in ("prefix", "format", "periodic")}
    assert asked <= {rule.say for rule in record.rules}
    assert len(record.rules) == SMALL.rules
