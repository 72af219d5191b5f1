"""Task bodies: a long text written under the prompt's rules, the gold of rule compliance."""

from collections.abc import Sequence

import numpy as np

from forgetmenot.data.prosg.filler import SENTENCE_WORDS
from forgetmenot.data.prosg.items import Items
from forgetmenot.data.prosg.rules import Rule, added_words, follow_line, rules_of
from forgetmenot.data.prosg.world import World


def task(
    rng: np.random.Generator, world: World, items: Items, lengths: Sequence[int], held: bool
) -> list[np.ndarray]:
    """Segments int64 [length]: the cue, then whole lines of filler that follow every rule.

    A segment too short for a line, as between close probes in training, holds the beginning of
    one.
    """
    rules = rules_of(world, items)
    segments, number = [], 1
    cue = world.cue
    for length in lengths:
        head, cue = np.split(cue, [min(length, len(cue))])
        lines, number = _lines(rng, world, rules, length - len(head), number, held)
        segments.append(np.concatenate([head, *lines]))
    return segments


def shortest_segment(rules: int) -> int:
    """Tokens in which the cue and a whole line under any `rules` rules have room for certain."""
    return 3 + 2 * rules + 2


def rule_bound(world: World, items: Items) -> np.ndarray:
    """Token ids that stand in a task body only because a rule asks for them."""
    said = {rule.say for rule in rules_of(world, items) if rule.kind != "forbid"}
    return np.array(sorted(world.ids[word] for word in said), dtype=np.int64)


def _lines(
    rng: np.random.Generator, world: World, rules: list[Rule], room: int, number: int, held: bool
) -> tuple[list[np.ndarray], int]:
    """Lines int64 of `room` tokens in all, from line `number` on, and the next line's number."""
    shortest, longest = SENTENCE_WORDS
    lines = []
    while room > 0:
        extra = added_words(rules, number) + 1  # and the full stop
        after = added_words(rules, number + 1) + 2  # the least that the next line needs
        words = room - extra  # were this the last line
        if words > longest and room - extra - after >= 1:
            words = min(int(rng.integers(shortest, longest + 1)), room - extra - after)
        base = world.filler.words(rng, max(1, words), held)
        line = follow_line(rng, rules, number, [world.tokens[word] for word in base])
        ids = np.append([world.ids[word] for word in line], world.stop)
        lines.append(ids[:room])
        room -= len(ids)
        number += 1
    return lines, number
