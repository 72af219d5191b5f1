"""Examples of every kind of rule, for readers: text that follows it, and random text."""

import json
from pathlib import Path

import numpy as np

from forgetmenot.data.prosg.items import Cell, draw_items
from forgetmenot.data.prosg.rules import Lines, Rule, accepts, follow, rules_of
from forgetmenot.data.prosg.templates import RULES
from forgetmenot.data.prosg.world import World
from forgetmenot.data.sampling import sample_rng
from forgetmenot.files import write_text

LINES = 40
"""Enough that random text does not follow a rule about every fifth line by chance."""


def draw_rule(rng: np.random.Generator, world: World, kind: str) -> Rule:
    """A rule of one kind, as a prompt with a single fact would state it."""
    items = draw_items(rng, world, Cell("iid", 1, rules=1, personas=1, rule_kinds=(kind,)))
    return rules_of(world, items)[0]


def filler_lines(rng: np.random.Generator, world: World, count: int = LINES) -> Lines:
    """Consecutive filler sentences as lines."""
    ends = world.filler.ends
    first = int(rng.integers(len(ends) - count))
    text = world.text(world.filler.ids[ends[first] : ends[first + count]])
    return [line.split()[:-1] for line in text.splitlines()]


def random_lines(rng: np.random.Generator, rule: Rule, lines: Lines) -> Lines:
    """The lines with every tenth word or so the rule's own, at random places."""
    words = np.array([word for word in (rule.when, rule.say) if word])
    return [
        [str(rng.choice(words)) if rng.random() < 0.1 else word for word in line] for line in lines
    ]


def write_examples(path: Path, world: World, count: int = 3) -> None:
    """`count` lines of JSON a kind: instruction, both texts and what the checker says of them."""
    rows = []
    for kind in RULES:
        for index in range(count):
            rng = sample_rng(world.settings["seed"], "prosg_pf rule", kind, index)
            rule, lines = draw_rule(rng, world, kind), filler_lines(rng, world)
            texts = {
                "follows": follow(rng, [rule], lines),
                "random": random_lines(rng, rule, lines),
            }
            row = {
                "kind": kind,
                "instruction": rule.instruction,
                "accepted": [name for name, text in texts.items() if accepts(rule, text)],
            }
            written = {name: [" ".join(line) for line in text] for name, text in texts.items()}
            rows.append(json.dumps(row | written))
    write_text(path, "".join(f"{row}\n" for row in rows))
