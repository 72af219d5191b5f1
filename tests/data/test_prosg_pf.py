"""ProSG-PF: the validity checks of the set (docs/prosg-pf.md)."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forgetmenot.data import prosg_pf
from forgetmenot.data.prosg.evalset import Record, draw_record, file_name, read_records
from forgetmenot.data.prosg.items import Cell, draw_items, fact_templates
from forgetmenot.data.prosg.templates import FACTS
from forgetmenot.data.prosg.world import World
from forgetmenot.errors import UserError
from forgetmenot.files import sha256_file

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
    facts=[4, 8],
    dense_facts=[16],
    rules=3,
    personas=2,
    distances=[0, 32, 64],
    long_distances=[0, 300],
    samples=12,
    modes=["neutral", "interfering", "task", "self"],
    train_samples=6,
    validation_samples=4,
)
STREAM = prosg_pf.StreamOptions(facts=[4, 8], distances=[0, 16, 32, 64], rules=3, personas=2)
MODES = ["neutral", "interfering"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prosg_pf")
    prosg_pf.build(SMALL, {}, folder)
    return folder


@pytest.fixture(scope="module")
def world(built: Path) -> World:
    return World.load(built)


def all_records(folder: Path) -> list[Record]:
    return [
        record
        for split in SMALL.splits
        for mode in SMALL.modes
        for facts in (SMALL.dense_facts if split == "dense" else SMALL.facts)
        for record in read_records(folder, split, mode, facts)
    ]


def statements(world: World, prompt: str) -> list[tuple[str, str, str, str]]:
    """(surface form, entity, relation, value) of each fact in a prompt, in order, from its text."""
    found = []
    for line in prompt.removeprefix("<prompt> ").splitlines():
        words = line.split()
        slots = {}
        for group, slot in (("entity", "{a}"), ("relation", "{b}"), ("value", "{c}")):
            for place, word in enumerate(words):
                if world.ids.get(word) in world.groups[group]:
                    slots[slot] = word
                    words[place] = slot
        if len(slots) == 3:
            found.append((" ".join(words), slots["{a}"], slots["{b}"], slots["{c}"]))
    return found


def train_batches(folder: Path, count: int) -> list[dict[str, np.ndarray]]:
    stream = prosg_pf.Stream(folder, STREAM)
    keys = range(count)
    return [stream.batch(np.random.Generator(np.random.Philox(key=[0, k])), 2048) for k in keys]


def test_same_seed_gives_the_same_files(built: Path, tmp_path: Path) -> None:
    prosg_pf.build(SMALL, {}, tmp_path / "again")
    prosg_pf.build(replace(SMALL, seed=1), {}, tmp_path / "other")
    files = sorted(path.relative_to(built) for path in built.rglob("*") if path.is_file())
    assert len(files) == 8 + 4 * (5 * 2 + 1)
    for name in files:
        assert sha256_file(built / name) == sha256_file(tmp_path / "again" / name)
    for name in (Path("vocab.json"), Path("filler.npy"), Path(file_name("iid", "neutral", 4))):
        assert sha256_file(built / name) != sha256_file(tmp_path / "other" / name)


def test_a_sample_is_a_function_of_its_name_alone(built: Path, world: World) -> None:
    cell = Cell("iid", 4, SMALL.rules, SMALL.personas, tuple(SMALL.rule_kinds))
    alone = draw_record(world, cell, "interfering", SMALL.distances, SMALL.probes, 7)
    assert alone == read_records(built, "iid", "interfering", 4)[7]
    neutral = read_records(built, "iid", "neutral", 4)[7]
    assert (neutral.prompt, neutral.probes) == (alone.prompt, alone.probes)
    assert neutral.body != alone.body


def test_changed_text_is_refused(built: Path, tmp_path: Path) -> None:
    name = file_name("iid", "neutral", 4)
    (tmp_path / "eval").mkdir()
    text = (built / name).read_text()
    fields = json.loads(text.splitlines()[0])
    answer = fields["answers"][0]
    (tmp_path / name).write_text(text.replace(f'"{answer}"', '"other"', 1))
    with pytest.raises(UserError, match="line 1: sha256"):
        read_records(tmp_path, "iid", "neutral", 4)
    (tmp_path / name).write_text(text.replace('"answers"', '"replies"', 1))
    with pytest.raises(UserError, match=r"line 1: found the columns .*replies.* build the set"):
        read_records(tmp_path, "iid", "neutral", 4)
    with pytest.raises(UserError, match="no such evaluation file; built are: iid-neutral-n4"):
        read_records(tmp_path, "iid", "neutral", 5)


def test_text_and_tokens_are_the_same_thing(built: Path, world: World) -> None:
    assert len(set(world.tokens)) == len(world.tokens)
    assert json.loads((built / "meta.json").read_text())["vocab_size"] == len(world.tokens)
    for record in all_records(built):
        ids = world.encode(record.prompt)
        assert world.text(ids) == record.prompt
        assert ids[0] == world.open
        assert ids[-1] == world.close
    with pytest.raises(UserError, match="'gnu' is not in vocab"):
        world.encode("the gnu")


def test_bodies_reach_each_distance_exactly(built: Path, world: World) -> None:
    for record in all_records(built):
        if record.mode == "self":
            assert record.body == []
            continue
        lengths = [len(world.encode(segment)) for segment in record.body]
        assert [0, *np.cumsum(lengths)] == record.distances
        assert all(segment.split()[-1] == "." for segment in record.body)


def test_answers_are_what_the_prompt_said_last(built: Path, world: World) -> None:
    updated = 0
    for record in all_records(built):
        latest: dict[tuple[str, str], str] = {}
        first: dict[tuple[str, str], str] = {}
        for _, entity, relation, value in statements(world, record.prompt):
            first.setdefault((entity, relation), value)
            latest[entity, relation] = value
        for probe in record.probes:
            if probe.kind != "fact":
                continue
            words = probe.question.split()
            entity = next(w for w in words if world.ids[w] in world.groups["entity"])
            relation = next(w for w in words if world.ids[w] in world.groups["relation"])
            assert latest[entity, relation] == probe.answer
            assert (first[entity, relation] != probe.answer) == probe.updated
            updated += probe.updated
    assert updated > 20


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_of_updated_facts(world: World, share: float) -> None:
    settings = {**world.settings, "updated_share": share}
    other = World(world.tokens, world.groups, settings, world.filler.ids)
    items = draw_items(np.random.default_rng(0), other, Cell("iid", 8, 0, 0, ("trigger",)))
    assert items.updated.sum() == 8 * share
    assert len(items.statements) == 8 + 8 * share


def test_values_are_uniform(world: World) -> None:
    rng = np.random.default_rng(0)
    cell = Cell("train", 8, 0, 2, ("trigger",))
    drawn = [draw_items(rng, world, cell).slots for _ in range(600)]
    facts = np.concatenate([slots[:8, 2] for slots in drawn]) - world.groups["value"].start
    personas = np.concatenate([slots[8:, 2] for slots in drawn])
    for values in (facts, personas - world.groups["attribute_value"].start):
        count = np.bincount(values, minlength=16)
        assert len(count) == 16
        # 1e-4 quantile of chi-square with 15 degrees of freedom
        assert ((count - count.mean()) ** 2 / count.mean()).sum() < 44.3


def test_training_never_shows_held_out_pairs(built: Path, world: World) -> None:
    """Facts of prompts and of interference; the split new-pairs shows nothing else."""
    entity, value = (world.groups[name].start for name in ("entity", "value"))

    def held(text: str) -> list[bool]:
        found = statements(world, text)
        left = np.array([world.ids[name] - entity for _, name, _, _ in found], dtype=np.int64)
        right = np.array([world.ids[name] - value for _, _, _, name in found], dtype=np.int64)
        return [bool(pair) for pair in world.facts.is_held(left, right)]

    seen = 0
    for batch in train_batches(built, 10):
        for row in (*batch["prompt_ids"], *batch["input_ids"]):
            pairs = held(world.text(row))
            seen += len(pairs)
            assert not any(pairs)
    assert seen > 1000
    for record in read_records(built, "new-pairs", "interfering", 8):
        assert all(held(record.prompt))
        assert not any(any(held(segment)) for segment in record.body)


def test_held_out_templates_occur_in_their_split_only(built: Path, world: World) -> None:
    trained = {
        (relation, form.removeprefix("now "))
        for batch in train_batches(built, 20)
        for row in batch["prompt_ids"]
        for form, _, relation, _ in statements(world, world.text(row[row != world.pad]))
    }
    new = {
        (relation, form.removeprefix("now "))
        for record in read_records(built, "new-templates", "neutral", 8)
        for form, _, relation, _ in statements(world, record.prompt)
    }
    forms = {form.removesuffix(" .") + " ." for form in FACTS[: SMALL.templates]}
    assert {form for _, form in trained} == forms
    assert len(trained) == SMALL.relations * (SMALL.templates - 2)
    assert len(new) == SMALL.relations * 2
    assert not trained & new


def test_each_relation_holds_out_its_own_two_templates(world: World) -> None:
    relation = np.repeat(np.arange(4), 50)
    rng = np.random.default_rng(0)
    for number in range(4):
        held = set(fact_templates(rng, world, relation, True)[relation == number])
        kept = set(fact_templates(rng, world, relation, False)[relation == number])
        assert len(held) == 2
        assert not held & kept


def test_new_rules_pair_triggers_with_codes_never_trained(built: Path, world: World) -> None:
    def held(slots: np.ndarray) -> np.ndarray:
        left = slots[:, 0] - world.groups["trigger"].start
        return world.triggers.is_held(left, slots[:, 2] - world.groups["code"].start)

    rng = np.random.default_rng(0)
    for split, expected in (("train", False), ("iid", False), ("rules-new", True)):
        for _ in range(50):
            items = draw_items(rng, world, Cell(split, 1, 4, 0, ("trigger",)))
            assert (held(items.slots[1:]) == expected).all()


@pytest.mark.parametrize("mode", MODES)
def test_bodies_do_not_speak_of_the_prompt(built: Path, world: World, mode: str) -> None:
    for record in read_records(built, "iid", mode, 8):
        facts = statements(world, record.prompt)
        body = set(" ".join(record.body).split())
        assert not body & {entity for _, entity, _, _ in facts}
        names = {world.tokens[i] for i in world.groups["entity"]}
        assert bool(body & names) == (mode == "interfering")
        relations = body & {world.tokens[i] for i in world.groups["relation"]}
        assert relations <= {relation for _, _, relation, _ in facts}
        assert bool(relations) == (mode == "interfering")
        groups = ["attribute_value", "trigger", "code", "keyword", "attribute"]
        groups += ["value"] if mode == "neutral" else []
        for group in groups:
            assert not body & {world.tokens[i] for i in world.groups[group]}


def test_interfering_values_tell_nothing_about_the_answer(world: World) -> None:
    """The answer is as frequent among the body's values as any other value."""
    cell = Cell("iid", 8, 0, 0, ("trigger",))
    share = []
    for index in range(300):
        record = draw_record(world, cell, "interfering", [0, 200], 1, index)
        values = [value for _, _, _, value in statements(world, record.body[0])]
        share.append(np.mean([value == record.probes[0].answer for value in values]))
    assert abs(np.mean(share) - 1 / 16) < 4 * np.std(share) / np.sqrt(len(share))


def test_evaluation_filler_is_never_trained_on(built: Path, world: World) -> None:
    """Ten words in a row identify a place of the filler."""

    def windows(ids: np.ndarray) -> set[bytes]:
        return {ids[i : i + 10].tobytes() for i in range(len(ids) - 9)}

    options = replace(STREAM, modes=["neutral"])
    stream = prosg_pf.Stream(built, options)
    trained = set()
    for key in range(20):
        rng = np.random.Generator(np.random.Philox(key=[0, key]))
        for row in stream.batch(rng, 2048)["input_ids"]:
            trained |= windows(row)
    tested = set()
    for record in read_records(built, "long", "neutral", 4):
        tested |= windows(world.encode(record.body[0]))
    assert len(tested) > 1000
    assert len(trained & tested) < 10
