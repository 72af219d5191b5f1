"""Surface forms of ProSG-PF: sentences with slots, compiled to token ids.

Slots: {a} who or when, {b} relation or attribute, {c} what is to be remembered. Every probe ends
in "{c} .", so the question is all but the last two tokens and the answer is the last but one.
"""

from collections.abc import Mapping, Sequence

import numpy as np

FACTS = (
    "the {b} of {a} is {c} .",
    "{a} has {b} {c} .",
    "for {a} the {b} is {c} .",
    "{a} chose {c} as {b} .",
    "note that {a} has {b} {c} .",
    "as {b} {a} has {c} .",
    "{c} is the {b} of {a} .",
    "the {b} {c} goes with {a} .",
    "it is known that {a} chose {c} as {b} .",
    "with {a} goes the {b} {c} .",
)
UPDATES = tuple(f"now {fact}" for fact in FACTS)
PERSONAS = ("your {b} is {c} .", "you have {b} {c} .", "you are known for {b} {c} .")
RULES = {
    "trigger": "when you read {a} say {c} .",
    "periodic": "say {c} in every {a} line .",
    "prefix": "start every line with {c} .",
    "forbid": "never say {c} .",
    "format": "end every line with {c} .",
    "counter": "in every {a} line give your {c} .",
}
PROBES = {
    "fact": (
        "recall the {b} of {a} is {c} .",
        "recall that {a} has {b} {c} .",
        "question : what is the {b} of {a} ? answer {c} .",
        "question : which {b} has {a} ? answer {c} .",
    ),
    "persona": (
        "question : who are you ? your {b} is {c} .",
        "question : what is your {b} ? answer {c} .",
    ),
    "trigger": ("{a} {c} .",),
    "periodic": ("question : which word is in every {a} line ? answer {c} .",),
    "prefix": ("question : which word starts every line ? answer {c} .",),
    "forbid": ("question : which word is never said ? answer {c} .",),
    "format": ("question : which word ends every line ? answer {c} .",),
    "counter": ("question : what is given in every {a} line ? answer {c} .",),
}
KINDS = tuple(PROBES)
CUE = "now start :"
"""Begins a text in which the rules are in force; made of words that every world has."""

_SLOTS = {"{a}": -1, "{b}": -2, "{c}": -3}
_END = -4


def function_words() -> list[str]:
    """All words of the surface forms that are not slots, sorted."""
    texts = [*FACTS, *UPDATES, *PERSONAS, *RULES.values()]
    texts += [text for forms in PROBES.values() for text in forms]
    return sorted({word for text in texts for word in text.split()} - set(_SLOTS) - {"."})


def question_openers() -> list[str]:
    """The words that only a question begins with, sorted."""
    first = {text.split()[0] for forms in PROBES.values() for text in forms}
    return sorted(first - set(_SLOTS))


class Templates:
    """All surface forms as one integer table, so that many sentences are rendered at once.

    `fact`, `update` and `persona` hold the first row of their forms; `rule[kind]` the row of the
    rule; `probe[kind]` the (first row, number) of the probe forms of an item kind.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        texts: list[str] = []

        def add(forms: Sequence[str]) -> int:
            texts.extend(forms)
            return len(texts) - len(forms)

        self.fact, self.update, self.persona = add(FACTS), add(UPDATES), add(PERSONAS)
        self.rule = {kind: add([text]) for kind, text in RULES.items()}
        self.probe = {kind: (add(forms), len(forms)) for kind, forms in PROBES.items()}
        codes = [[_SLOTS[w] if w in _SLOTS else ids[w] for w in text.split()] for text in texts]
        self.length = np.array([len(row) for row in codes])
        self.table = np.full((len(texts), self.length.max()), _END)
        for row, code in zip(self.table, codes, strict=True):
            row[: len(code)] = code
        self.longest_probe = int(
            self.length[min(first for first, _ in self.probe.values()) :].max()
        )
        self.shortest_fact = int(self.length[self.fact : self.fact + len(FACTS)].min())

    def render(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of sentences. rows int64 [n, 4]: template, a, b, c (token ids).

        Returns the flat token ids int64 [sum of lengths] and the lengths int64 [n].
        """
        template = rows[:, 0]
        grid = self.table[template]
        for slot in (1, 2, 3):
            grid = np.where(grid == -slot, rows[:, slot, None], grid)
        return grid[grid >= 0], self.length[template]
