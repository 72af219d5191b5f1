"""The rules a prompt may hold: how text that follows one looks, and a checker for each.

Text is a list of lines, a line a list of words without its full stop.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from forgetmenot.data.prosg.items import Items
from forgetmenot.data.prosg.templates import KINDS
from forgetmenot.data.prosg.words import ORDINALS
from forgetmenot.data.prosg.world import World

Lines = list[list[str]]


@dataclass(frozen=True)
class Rule:
    """`instruction` as in the prompt; `when`: trigger or ordinal; `say`: the word it is about."""

    kind: str
    instruction: str
    when: str
    say: str

    @property
    def every(self) -> int:
        """Period in lines of a periodic or counter rule."""
        return ORDINALS.index(self.when) + 2


def rules_of(world: World, items: Items) -> list[Rule]:
    """The rules of a prompt; a counter rule says the value of the attribute that it names."""
    personas = items.slots[items.kind == KINDS.index("persona")]
    values = {int(b): int(c) for _, b, c in personas}
    rules = []
    for index in np.flatnonzero(items.kind >= KINDS.index("trigger")):
        kind, (a, b, c) = KINDS[items.kind[index]], items.slots[index]
        row = np.array([[world.templates.rule[kind], a, b, c]])
        say = values[int(c)] if kind == "counter" else int(c)
        instruction = world.text(world.templates.render(row)[0])
        rules.append(Rule(kind, instruction, world.tokens[a], world.tokens[say]))
    return rules


def follow(rng: np.random.Generator, rule: Rule, lines: Lines) -> Lines:
    """Gold rendering: the lines with the rule in force (and with occasions for a trigger rule)."""
    return _FOLLOW[rule.kind](rng, rule, lines)


def occasions(rule: Rule, lines: Lines) -> list[bool]:
    """For each place in the text where the rule applies, whether it was followed there."""
    return _CHECK[rule.kind](rule, lines)


def accepts(rule: Rule, lines: Lines) -> bool:
    """Whether the rule applied at least once and was followed every time."""
    found = occasions(rule, lines)
    return bool(found) and all(found)


def _follow_trigger(rng: np.random.Generator, rule: Rule, lines: Lines) -> Lines:
    pair = [rule.when, rule.say]
    return [_insert(rng, line, pair) if n % 3 == 0 else line for n, line in enumerate(lines)]


def _follow_periodic(rng: np.random.Generator, rule: Rule, lines: Lines) -> Lines:
    return [
        _insert(rng, line, [rule.say]) if n % rule.every == 0 else line
        for n, line in enumerate(lines, start=1)
    ]


def _follow_prefix(rng: np.random.Generator, rule: Rule, lines: Lines) -> Lines:
    return [[rule.say, *line] for line in lines]


def _follow_forbid(rng: np.random.Generator, rule: Rule, lines: Lines) -> Lines:
    return [[word for word in line if word != rule.say] for line in lines]


def _follow_format(rng: np.random.Generator, rule: Rule, lines: Lines) -> Lines:
    return [[*line, rule.say] for line in lines]


def _follow_counter(rng: np.random.Generator, rule: Rule, lines: Lines) -> Lines:
    return [
        [*line, rule.say] if n % rule.every == 0 else line for n, line in enumerate(lines, start=1)
    ]


def _insert(rng: np.random.Generator, line: list[str], words: list[str]) -> list[str]:
    place = int(rng.integers(len(line) + 1))
    return [*line[:place], *words, *line[place:]]


def _check_trigger(rule: Rule, lines: Lines) -> list[bool]:
    return [
        line[n + 1 : n + 2] == [rule.say]
        for line in lines
        for n, word in enumerate(line)
        if word == rule.when
    ]


def _check_nth(rule: Rule, lines: Lines) -> list[bool]:
    return [rule.say in line for line in lines[rule.every - 1 :: rule.every]]


_FOLLOW: dict[str, Callable[[np.random.Generator, Rule, Lines], Lines]] = {
    "trigger": _follow_trigger,
    "periodic": _follow_periodic,
    "prefix": _follow_prefix,
    "forbid": _follow_forbid,
    "format": _follow_format,
    "counter": _follow_counter,
}
_CHECK: dict[str, Callable[[Rule, Lines], list[bool]]] = {
    "trigger": _check_trigger,
    "periodic": _check_nth,
    "prefix": lambda rule, lines: [line[:1] == [rule.say] for line in lines],
    "forbid": lambda rule, lines: [rule.say not in line for line in lines],
    "format": lambda rule, lines: [line[-1:] == [rule.say] for line in lines],
    "counter": _check_nth,
}
