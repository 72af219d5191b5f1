"""One needle in one haystack, as text for tests and as tokens for training.

The placing follows RULER: in prose the needle stands before a sentence at one of 40 depths, among
repeated lines before a random line. Ours differ in three points: prose starts at a random
sentence, not always at the first; it fills the context to the token, not in steps of 500 words;
and only the answer's own tokens are kept free, not 128.
"""

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from forgetmenot.data import niah_text
from forgetmenot.data.niah_haystack import Haystack, encode
from forgetmenot.data.sampling import sample_rng
from forgetmenot.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Needle(NamedTuple):
    """What is asked: `key` and its `value`, in the words of `task`."""

    task: str
    key: str
    value: str

    def words(self, template: str) -> str:
        """A sentence of `niah_text`, filled in."""
        return template.format(kind=niah_text.KINDS[self.task], key=self.key, value=self.value)

    @property
    def answer(self) -> str:
        """What the model is to write after the prompt."""
        return f" {self.value}"


class Placement(NamedTuple):
    """Haystack units start to end - 1 with the needle before unit `insert`; depth in percent."""

    start: int
    insert: int
    end: int
    depth: int


class Writer:
    """Puts needles into one haystack for one tokenizer."""

    def __init__(self, tokenizer: "Tokenizer", haystack: Haystack, *, brief: bool = False) -> None:
        """`brief` leaves out the instructions and the question: context and answer prefix alone."""
        self.tokenizer = tokenizer
        self.haystack = haystack
        self.brief = brief
        self.header = "" if brief else niah_text.HEADER
        self.question = ("\n" if brief else niah_text.QUESTION) + niah_text.ANSWER_PREFIX
        self._start_tokens = haystack.offsets[haystack.starts]
        # Headers and questions recur, and a needle's pieces are asked for several times.
        self.encode = functools.lru_cache(maxsize=2**14)(functools.partial(encode, tokenizer))

    def fixed_tokens(self, needle: Needle) -> int:
        """Tokens of BOS, prompt and answer without any haystack, at most."""
        sentence = needle.words(niah_text.NEEDLE)
        return (
            1
            + len(self.encode(needle.words(self.header)))
            + max(len(self.encode(joiner + sentence)) for joiner in {"\n", self.haystack.joiner})
            + len(self.encode(needle.words(self.question)))
            + len(self.encode(needle.answer))
        )

    def minimum(self, needle: Needle) -> int:
        """The shortest length that leaves room for one sentence of haystack, of average length.

        A brief row needs none.
        """
        if self.brief:
            return self.fixed_tokens(needle)
        sentence = -(-self.haystack.tokens // len(self.haystack.starts))
        return self.fixed_tokens(needle) + sentence

    def require_room(self, task: str, split: niah_text.Split, length: int) -> None:
        """Raise UserError unless `length` suffices for every key and all but freak values."""
        key = max(niah_text.KEYS[split], key=lambda key: len(self.encode(f" {key}")))
        rng = sample_rng(0, "values", task)
        needles = [Needle(task, key, niah_text.draw_value(rng, task)) for _ in range(256)]
        minimum = max(self.minimum(needle) for needle in needles)
        if minimum > length:
            raise UserError(
                f"niah: {task} at length {length}: found no room for the prompt, the answer and a "
                f"sentence of haystack, allowed: {minimum} tokens or more"
            )

    def draw(
        self, rng: np.random.Generator, task: str, split: niah_text.Split, length: int
    ) -> Needle:
        """A needle with a key of `split` that fits; `length` must have passed `require_room`."""
        while True:
            key = niah_text.draw_key(rng, split)
            needle = Needle(task, key, niah_text.draw_value(rng, task))
            if self.minimum(needle) <= length:
                return needle

    def place(self, rng: np.random.Generator, needle: Needle, length: int) -> Placement:
        """Fill `length` tokens (BOS, prompt and answer) with haystack.

        Raises UserError when the haystack is shorter than what there is to fill.
        """
        offsets, starts = self.haystack.offsets, self.haystack.starts
        room = length - self.fixed_tokens(needle)
        possible = int(np.searchsorted(self._start_tokens, offsets[-1] - room, side="right"))
        if possible == 0:
            raise UserError(
                f"niah: {needle.task} at length {length}: found a haystack of "
                f"{self.haystack.tokens} tokens, needs at least {room}"
            )
        if needle.task == niah_text.REPEATED:
            start = 0
            lines = int(np.searchsorted(offsets, room, side="right")) - 1
            insert = int(rng.integers(max(lines, 1)))
            return Placement(start, insert, lines, round(100 * insert / max(lines, 1)))
        start = int(starts[rng.integers(possible)])
        # The context's first word follows a line break, which may cost more than a space.
        first = len(self.encode("\n" + self.haystack.units[start]))
        room -= max(0, first - int(offsets[start + 1] - offsets[start]))
        end = max(start, int(np.searchsorted(offsets, offsets[start] + room, side="right")) - 1)
        depth = niah_text.DEPTHS[rng.integers(len(niah_text.DEPTHS))]
        first_sentence, next_sentence = np.searchsorted(starts, [start, end]).tolist()
        sentence = first_sentence + (next_sentence - first_sentence) * depth // 100
        insert = int(starts[sentence]) if sentence < next_sentence else end
        return Placement(start, insert, end, depth)

    def prompt(self, needle: Needle, place: Placement) -> str:
        """The prompt's text, answer prefix included."""
        units = self.haystack.units
        context = [
            *units[place.start : place.insert],
            needle.words(niah_text.NEEDLE),
            *units[place.insert : place.end],
        ]
        return (
            needle.words(self.header)
            + "\n"
            + self.haystack.joiner.join(context)
            + needle.words(self.question)
        )

    def prompt_ids(self, needle: Needle, place: Placement) -> np.ndarray:
        """The prompt's tokens, int64 [L], put together from pieces (see `check_pieces`)."""
        ids, offsets = self.haystack.ids, self.haystack.offsets
        sentence = needle.words(niah_text.NEEDLE)
        before = ids[offsets[place.start] : offsets[place.insert]]
        if place.insert > place.start:
            opening = self.encode("\n" + self.haystack.units[place.start])
            before = before[offsets[place.start + 1] - offsets[place.start] :]
            middle = self.encode(self.haystack.joiner + sentence)
        else:
            opening, middle = [], self.encode("\n" + sentence)
        return np.concatenate(
            [
                self.encode(needle.words(self.header)),
                opening,
                before,
                middle,
                ids[offsets[place.insert] : offsets[place.end]],
                self.encode(needle.words(self.question)),
            ]
        ).astype(np.int64)

    def check_pieces(self, needle: Needle, place: Placement) -> None:
        """Raise UserError unless the pieces' tokens are the tokens of the whole prompt.

        They are for a byte-level BPE that splits before spaces and line breaks, as GPT-2's does.
        """
        pieces = self.prompt_ids(needle, place).tolist()
        if pieces != encode(self.tokenizer, self.prompt(needle, place)):
            raise UserError(
                "niah: tokenizer.json: found a tokenizer whose tokens reach across words, "
                "allowed: byte-level BPE that splits before spaces and line breaks"
            )
