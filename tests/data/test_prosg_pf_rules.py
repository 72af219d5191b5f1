"""Rules of ProSG-PF: every checker accepts its own gold rendering and rejects a random one."""

import json
from pathlib import Path

import numpy as np
import pytest

from forgetmenot.data import prosg_pf
from forgetmenot.data.prosg.examples import (
    draw_rule,
    filler_lines,
    random_lines,
    write_examples,
)
from forgetmenot.data.prosg.items import Cell, draw_items
from forgetmenot.data.prosg.rules import Rule, accepts, follow, occasions, rules_of
from forgetmenot.data.prosg.templates import KINDS, RULES, function_words
from forgetmenot.data.prosg.words import ATTRIBUTES, RELATIONS
from forgetmenot.data.prosg.world import World


@pytest.fixture(scope="module")
def world() -> World:
    options = prosg_pf.Options(entities=32, relations=4, values=16, filler_tokens=5000)
    return World.create(options.__dict__)


def test_a_word_means_one_thing() -> None:
    words = [*function_words(), *RELATIONS, *ATTRIBUTES]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("kind", list(RULES))
def test_checkers_accept_gold_and_reject_random(world: World, kind: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        rule, lines = draw_rule(rng, world, kind), filler_lines(rng, world)
        assert rule.kind == kind
        assert accepts(rule, follow(rng, [rule], lines))
        assert not accepts(rule, random_lines(rng, rule, lines))


@pytest.mark.parametrize("kind", list(RULES))
def test_gold_of_another_rule_is_rejected(world: World, kind: str) -> None:
    """A rule is about its own word: following a twin with another word is not enough."""
    rng = np.random.default_rng(1)
    lines = filler_lines(rng, world)
    rule = draw_rule(rng, world, kind)
    twin = Rule(kind, "", rule.when, lines[0][0])
    text = follow(rng, [twin], lines)
    if kind == "forbid":
        text = [[*line, rule.say] for line in text]
    assert not accepts(rule, text)


@pytest.mark.parametrize(
    ("kind", "when", "lines", "expected"),
    [
        ("trigger", "T", ["a T x b", "T b", "a T"], [True, False, False]),
        ("periodic", "third", ["x", "x", "a x", "a", "a", "b"], [True, False]),
        ("prefix", "second", ["x a", "a x"], [True, False]),
        ("forbid", "second", ["a b", "a x"], [True, False]),
        ("format", "second", ["a x", "x a"], [True, False]),
        ("counter", "second", ["a", "a x", "x", "b"], [True, False]),
    ],
)
def test_occasions_by_hand(kind: str, when: str, lines: list[str], expected: list[bool]) -> None:
    rule = Rule(kind, "", when, "x")
    found = occasions(rule, [line.split() for line in lines])
    assert [followed for _, followed in found] == expected


def test_text_without_an_occasion_is_not_compliance() -> None:
    assert not accepts(Rule("trigger", "", "T", "x"), [["a", "b"]])


def test_prompts_hold_no_contradicting_rules(world: World) -> None:
    rng = np.random.default_rng(0)
    kinds = tuple(RULES)
    seen = set()
    for _ in range(50):
        items = draw_items(rng, world, Cell("iid", 4, 6, 2, kinds))
        rules = rules_of(world, items)
        assert len(rules) == 6
        single = [rule.kind for rule in rules if rule.kind != "trigger"]
        assert len(set(single)) == len(single)
        triggers = [rule.when for rule in rules if rule.kind == "trigger"]
        assert len(set(triggers)) == len(triggers)
        seen |= {rule.kind for rule in rules}
    assert seen == set(kinds)


def test_a_counter_needs_an_attribute(world: World) -> None:
    items = draw_items(np.random.default_rng(0), world, Cell("iid", 2, 3, 0, ("counter",)))
    assert [KINDS[kind] for kind in items.kind[2:]] == ["trigger"] * 3


def test_examples_are_readable(world: World, tmp_path: Path) -> None:
    write_examples(tmp_path / "rules.jsonl", world)
    rows = [json.loads(line) for line in (tmp_path / "rules.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows[::3]] == list(RULES)
    assert all(row["accepted"] == ["follows"] for row in rows)
