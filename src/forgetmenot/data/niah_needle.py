"""What one sample hides and asks for: keys, their values, and the sentences around them."""

from typing import NamedTuple

import numpy as np

from forgetmenot.data import niah_text
from forgetmenot.data.niah_text import Form


class Needle(NamedTuple):
    """The (key, value) pairs of a text, in its order, and the keys that are asked for."""

    task: str
    pairs: tuple[tuple[str, str], ...]
    asked: tuple[str, ...]

    @property
    def form(self) -> Form:
        """What the task hides and asks for."""
        return niah_text.FORMS[self.task]

    @property
    def sentences(self) -> list[str]:
        """The needles as they stand in the text, one a pair."""
        kind = self.form.kind
        return [niah_text.NEEDLE.format(kind=kind, key=key, value=v) for key, v in self.pairs]

    @property
    def values(self) -> list[str]:
        """The values of the keys that are asked for."""
        return [value for asked in self.asked for key, value in self.pairs if key == asked]

    @property
    def answer(self) -> str:
        """What the model is to write after the prompt."""
        return " " + ", ".join(self.values)

    @property
    def header(self) -> str:
        """The instructions before the text."""
        return self._words(niah_text.HEADER_MANY if self._many else niah_text.HEADER)

    @property
    def question(self) -> str:
        """The question after the text."""
        return self._words(niah_text.QUESTION_MANY if self._many else niah_text.QUESTION)

    @property
    def answer_prefix(self) -> str:
        """The given beginning of the answer."""
        return self._words(niah_text.ANSWER_PREFIX_MANY if self._many else niah_text.ANSWER_PREFIX)

    @property
    def _many(self) -> bool:
        return self.form.asked * self.form.values > 1

    def _words(self, template: str) -> str:
        *others, last = self.asked
        query = f"{', '.join(others)}, and {last}" if others else last
        return template.format(kind=self.form.kind, key=query)


def make(rng: np.random.Generator, task: str, keys: list[str]) -> Needle:
    """A needle of each value of `keys`, in random order; the first keys are those asked for."""
    form = niah_text.FORMS[task]
    pairs = [(key, niah_text.draw_value(rng, task)) for key in keys for _ in range(form.values)]
    if len(pairs) > 1:
        pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    return Needle(task, tuple(pairs), tuple(keys[: form.asked]))


def draw(rng: np.random.Generator, task: str, split: niah_text.Split) -> Needle:
    """A needle of a task with keys of `split`, all different."""
    keys: list[str] = []
    while len(keys) < niah_text.FORMS[task].keys:
        key = niah_text.draw_key(rng, split)
        keys += [key] if key not in keys else []
    return make(rng, task, keys)
