"""Draws what a prompt says: facts with updates, persona attributes, rules; and what to ask."""

from dataclasses import dataclass

import numpy as np

from forgetmenot.data.prosg.templates import KINDS, PERSONAS
from forgetmenot.data.prosg.world import World

HELD_TEMPLATES = 2
"""Fact templates of each relation that training prompts never use."""
FACTS_PER_ENTITY = 2
"""Mean facts about one entity: with one each, the relation in a question would not matter."""


@dataclass(frozen=True)
class Cell:
    """What a prompt is made of. `split` decides which side of the hold-outs it comes from."""

    split: str
    facts: int
    rules: int
    personas: int
    rule_kinds: tuple[str, ...]


@dataclass(frozen=True)
class Items:
    """The content of one prompt.

    statements int64 [n, 4]: template, a, b, c in prompt order. For each thing that can be asked:
    kind int64 [items] (index into KINDS), updated bool [items] and slots int64 [items, 3], the
    token ids a, b, c with c the answer. The first `facts` items are the facts.
    """

    statements: np.ndarray
    kind: np.ndarray
    updated: np.ndarray
    slots: np.ndarray
    facts: int


def draw_items(rng: np.random.Generator, world: World, cell: Cell) -> Items:
    """One prompt's content, a pure function of the generator's state, the world and the cell."""
    facts, updates = _facts(rng, world, cell)
    personas = _personas(rng, world, cell)
    rules = _rules(rng, world, cell, personas[:, 2])
    once = np.concatenate([facts, personas, rules])
    latest = once[:, 1:].copy()
    latest[: len(updates)] = updates[:, 1:]
    place = rng.permutation(len(once) + len(updates))
    first, second = place[: len(updates)].copy(), place[len(once) :].copy()
    place[: len(updates)] = np.minimum(first, second)  # an update follows what it updates
    place[len(once) :] = np.maximum(first, second)
    statements = np.empty((len(place), 4), dtype=np.int64)
    statements[place] = np.concatenate([once, updates])
    kind = np.zeros(len(once), dtype=np.int64)
    kind[len(facts) :] = KINDS.index("persona")
    kind[len(facts) + len(personas) :] = _rule_kind(world, rules[:, 0])
    return Items(statements, kind, np.arange(len(once)) < len(updates), latest, len(facts))


def fact_templates(
    rng: np.random.Generator, world: World, relation: np.ndarray, held: bool
) -> np.ndarray:
    """A fact template (0 based) for each relation number, held-out or not; int64 [n].

    The held-out two turn with the relation, so every template's words are trained with others.
    """
    count = world.settings["templates"]
    first, size = (0, HELD_TEMPLATES) if held else (HELD_TEMPLATES, count - HELD_TEMPLATES)
    turn = first + rng.integers(size, size=len(relation))
    return np.asarray((turn + HELD_TEMPLATES * relation) % count)


def _facts(rng: np.random.Generator, world: World, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Statement rows of the facts [n, 4] and of the updates of the first of them [u, 4]."""
    entities, relations = world.groups["entity"], world.groups["relation"]
    people = cast_size(cell.facts, len(relations))
    cast = rng.choice(len(entities), people, replace=False)
    key = rng.choice(people * len(relations), cell.facts, replace=False)
    entity, relation = cast[key // len(relations)], key % len(relations)
    held = cell.split == "new-pairs"
    value = world.facts.draw(rng, entity, held)
    changed = int(cell.facts * world.settings["updated_share"] + rng.random())
    new = world.facts.redraw(rng, entity[:changed], value[:changed], held)
    form = fact_templates(
        rng, world, np.concatenate([relation, relation[:changed]]), cell.split == "new-templates"
    )
    start = world.groups["value"].start
    a, b = entity + entities.start, relation + relations.start
    facts = np.stack([world.templates.fact + form[: cell.facts], a, b, value + start], axis=1)
    rows = [world.templates.update + form[cell.facts :], a[:changed], b[:changed], new + start]
    return facts, np.stack(rows, axis=1)


def cast_size(facts: int, relations: int) -> int:
    """Entities that `facts` facts are about: enough for distinct (entity, relation) keys."""
    return max(-(-facts // FACTS_PER_ENTITY), -(-facts // relations))


def _personas(rng: np.random.Generator, world: World, cell: Cell) -> np.ndarray:
    """Statement rows [K, 4] of distinct attributes of the one who is prompted."""
    rows = np.zeros((cell.personas, 4), dtype=np.int64)
    attributes, values = world.groups["attribute"], world.groups["attribute_value"]
    rows[:, 0] = world.templates.persona + rng.integers(len(PERSONAS), size=cell.personas)
    rows[:, 2] = attributes.start + rng.choice(len(attributes), cell.personas, replace=False)
    rows[:, 3] = values.start + rng.integers(len(values), size=cell.personas)
    return rows


def _rules(
    rng: np.random.Generator, world: World, cell: Cell, attributes: np.ndarray
) -> np.ndarray:
    """Statement rows [M, 4]; a kind other than trigger at most once, or they would contradict.

    A repeated kind becomes a trigger, and so does a counter without an attribute.
    """
    rows = np.zeros((cell.rules, 4), dtype=np.int64)
    if not cell.rules:
        return rows
    kinds = [cell.rule_kinds[i] for i in rng.integers(len(cell.rule_kinds), size=cell.rules)]
    if not len(attributes):
        kinds = ["trigger" if kind == "counter" else kind for kind in kinds]
    kinds = ["trigger" if kind in kinds[:i] else kind for i, kind in enumerate(kinds)]
    rows[:, 0] = [world.templates.rule[kind] for kind in kinds]
    rows[:, 1] = world.ordinals[rng.integers(len(world.ordinals), size=cell.rules)]
    keywords = world.groups["keyword"]
    rows[:, 3] = keywords.start + rng.choice(len(keywords), cell.rules, replace=False)
    trigger = rng.choice(len(world.groups["trigger"]), cell.rules, replace=False)
    code = world.triggers.draw(rng, trigger, cell.split == "rules-new")
    for row, kind in enumerate(kinds):
        if kind == "trigger":
            rows[row, 1] = world.groups["trigger"].start + trigger[row]
            rows[row, 3] = world.groups["code"].start + code[row]
        elif kind == "counter":
            rows[row, 3] = rng.choice(attributes)
    return rows


def _rule_kind(world: World, template: np.ndarray) -> np.ndarray:
    """Index into KINDS of each rule template: both list the rules in the same order."""
    return KINDS.index("trigger") + template - world.templates.rule["trigger"]
