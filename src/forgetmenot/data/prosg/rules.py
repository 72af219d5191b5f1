"""The rules a prompt may hold: how text that follows them looks, and a checker for each.

Text is a list of lines, a line a list of words without its full stop. Lines count from 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from forgetmenot.data.prosg.items import Items
from forgetmenot.data.prosg.templates import CUE, KINDS
from forgetmenot.data.prosg.words import ORDINALS
from forgetmenot.data.prosg.world import STOP, World

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


class Occasion(NamedTuple):
    """A place where a rule applies: the index of its line (from 0), and whether it was followed."""

    line: int
    followed: bool


class Compliance(NamedTuple):
    """An occasion of one rule: `position`, in words, is where its line begins in the text."""

    kind: str
    position: int
    followed: bool


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
        when = world.tokens[a] if kind in ("trigger", "periodic", "counter") else ""
        rules.append(Rule(kind, instruction, when, world.tokens[say]))
    return rules


def follow(rng: np.random.Generator, rules: Sequence[Rule], lines: Lines) -> Lines:
    """Gold rendering: the lines with all rules in force (and with occasions for triggers)."""
    return [follow_line(rng, rules, number, line) for number, line in enumerate(lines, start=1)]


def follow_line(
    rng: np.random.Generator, rules: Sequence[Rule], number: int, line: list[str]
) -> list[str]:
    """Line `number` with all rules in force, `added_words` longer unless it broke a `forbid`."""
    for place, rule in sorted(enumerate(rules), key=lambda pair: _ORDER.index(pair[1].kind)):
        line = _FOLLOW[rule.kind](rng, rule, line) if _applies(rule, number, place) else line
    # What one rule inserted as a unit no other rule may part.
    return " ".join(line).split()


def added_words(rules: Sequence[Rule], number: int) -> int:
    """Words that following the rules adds to line `number`."""
    sizes = [_ADDED[rule.kind] * _applies(rule, number, n) for n, rule in enumerate(rules)]
    return sum(sizes)


def occasions(rule: Rule, lines: Lines) -> list[Occasion]:
    """Each place in the text where the rule applies, and whether it was followed there."""
    return _CHECK[rule.kind](rule, lines)


def accepts(rule: Rule, lines: Lines) -> bool:
    """Whether the rule applied at least once and was followed every time."""
    found = occasions(rule, lines)
    return bool(found) and all(occasion.followed for occasion in found)


def written_lines(text: str) -> Lines:
    """The whole lines of a text, without a cue before them and an unfinished line after them."""
    words = text.removeprefix(CUE).split()
    stops = [place for place, word in enumerate(words) if word == STOP]
    starts = [0, *(stop + 1 for stop in stops)]
    return [words[start:stop] for start, stop in zip(starts, stops, strict=False)]


def compliance(rules: Sequence[Rule], text: str) -> list[Compliance]:
    """Every occasion of every rule in a text, checked, with the place of its line."""
    lines = written_lines(text)
    before = len(CUE.split()) if text.startswith(CUE) else 0
    starts = np.cumsum([before, *(len(line) + 1 for line in lines)])
    return [
        Compliance(rule.kind, int(starts[line]), followed)
        for rule in rules
        for line, followed in occasions(rule, lines)
    ]


def _applies(rule: Rule, number: int, place: int) -> bool:
    """Whether following adds to line `number`; triggers take turns by the rule's place."""
    if rule.kind == "trigger":
        return (number + place) % 3 == 1
    return number % rule.every == 0 if rule.kind in ("periodic", "counter") else True


def _insert(rng: np.random.Generator, line: list[str], unit: str) -> list[str]:
    place = int(rng.integers(len(line) + 1))
    return [*line[:place], unit, *line[place:]]


def _check_trigger(rule: Rule, lines: Lines) -> list[Occasion]:
    return [
        Occasion(index, line[n + 1 : n + 2] == [rule.say])
        for index, line in enumerate(lines)
        for n, word in enumerate(line)
        if word == rule.when
    ]


def _check_nth(rule: Rule, lines: Lines) -> list[Occasion]:
    return [
        Occasion(index, rule.say in lines[index])
        for index in range(rule.every - 1, len(lines), rule.every)
    ]


def _check_all(right: Callable[[Rule, list[str]], bool]) -> Callable[[Rule, Lines], list[Occasion]]:
    return lambda rule, lines: [Occasion(n, right(rule, line)) for n, line in enumerate(lines)]


# What ends or starts a line is put there last.
_ORDER = ("forbid", "periodic", "trigger", "counter", "prefix", "format")
_ADDED = {"trigger": 2, "periodic": 1, "prefix": 1, "forbid": 0, "format": 1, "counter": 1}
_FOLLOW: dict[str, Callable[[np.random.Generator, Rule, list[str]], list[str]]] = {
    "trigger": lambda rng, rule, line: _insert(rng, line, f"{rule.when} {rule.say}"),
    "periodic": lambda rng, rule, line: _insert(rng, line, rule.say),
    "prefix": lambda rng, rule, line: [rule.say, *line],
    "forbid": lambda rng, rule, line: [word for word in line if word != rule.say],
    "format": lambda rng, rule, line: [*line, rule.say],
    "counter": lambda rng, rule, line: [*line, rule.say],
}
_CHECK: dict[str, Callable[[Rule, Lines], list[Occasion]]] = {
    "trigger": _check_trigger,
    "periodic": _check_nth,
    "prefix": _check_all(lambda rule, line: line[:1] == [rule.say]),
    "forbid": _check_all(lambda rule, line: rule.say not in line),
    "format": _check_all(lambda rule, line: line[-1:] == [rule.say]),
    "counter": _check_nth,
}
