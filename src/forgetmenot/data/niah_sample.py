"""One question and its needles in one haystack, as text for tests and as tokens for training.

The placing follows RULER: in prose a needle stands before a sentence at one of 40 depths, among
repeated lines before a random line. Ours differ in three points, unless `niah_nominal` places it:
prose starts at a random sentence, not always at the first; it fills the context to the token, not
in steps of 500 words; and only the answer's own tokens are kept free, not 128.
"""

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from forgetmenot.data import niah_needle, niah_text
from forgetmenot.data.niah_haystack import Haystack, encode
from forgetmenot.data.niah_needle import Needle
from forgetmenot.data.sampling import sample_rng
from forgetmenot.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Placement(NamedTuple):
    """Haystack units start to end - 1 with needle n before unit `inserts[n]` (rising).

    `depths` are those of the needles, in percent. With `spaced` a joiner stands on both sides of a
    needle even where there is no haystack, as RULER has it in prose.
    """

    start: int
    inserts: tuple[int, ...]
    end: int
    depths: tuple[int, ...]
    spaced: bool = False

    def cut(self, end: int) -> "Placement":
        """The same with the haystack ending at `end`."""
        return self._replace(inserts=tuple(min(i, end) for i in self.inserts), end=end)


class Writer:
    """Puts needles into one haystack for one tokenizer."""

    def __init__(self, tokenizer: "Tokenizer", haystack: Haystack, *, brief: bool = False) -> None:
        """`brief` leaves out the instructions and the question: context and answer prefix alone."""
        self.tokenizer = tokenizer
        self.haystack = haystack
        self.brief = brief
        self._start_tokens = haystack.offsets[haystack.starts]
        # Headers and questions recur, and a needle's pieces are asked for several times.
        self.encode = functools.lru_cache(maxsize=2**14)(functools.partial(encode, tokenizer))

    def header(self, needle: Needle) -> str:
        """What stands before the context."""
        return "" if self.brief else needle.header

    def question(self, needle: Needle) -> str:
        """What stands after the context, answer prefix included."""
        return ("\n" if self.brief else needle.question) + needle.answer_prefix

    def fixed_tokens(self, needle: Needle) -> int:
        """Tokens of BOS, prompt and answer without any haystack, at most."""
        joiners = {"\n", self.haystack.joiner}
        sentences = [
            max(len(self.encode(joiner + sentence)) for joiner in joiners)
            for sentence in needle.sentences
        ]
        return (
            1
            + len(self.encode(self.header(needle)))
            + sum(sentences)
            + len(self.encode(self.question(needle)))
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
        keys = [key] * niah_text.FORMS[task].keys
        minimum = max(self.minimum(niah_needle.make(rng, task, keys)) for _ in range(256))
        if minimum > length:
            raise UserError(
                f"niah: {task} at length {length}: found no room for the prompt, the answer and a "
                f"sentence of haystack, allowed: {minimum} tokens or more"
            )

    def draw(
        self, rng: np.random.Generator, task: str, split: niah_text.Split, length: int
    ) -> Needle:
        """A needle with keys of `split` that fits; `length` must have passed `require_room`."""
        while True:
            needle = niah_needle.draw(rng, task, split)
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
        if needle.form.repeated:
            return self.insert(
                rng, needle, 0, int(np.searchsorted(offsets, room, side="right")) - 1
            )
        start = int(starts[rng.integers(possible)])
        # The context's first word follows a line break, which may cost more than a space.
        first = len(self.encode("\n" + self.haystack.units[start]))
        room -= max(0, first - int(offsets[start + 1] - offsets[start]))
        end = max(start, int(np.searchsorted(offsets, offsets[start] + room, side="right")) - 1)
        return self.insert(rng, needle, start, end)

    def insert(self, rng: np.random.Generator, needle: Needle, start: int, end: int) -> Placement:
        """Draw where the needles stand among the haystack's units start to end - 1."""
        count = len(needle.pairs)
        if needle.form.repeated:
            lines = max(end - start, 1)
            chosen = sorted(rng.integers(lines, size=count).tolist())
            depths = [round(100 * line / lines) for line in chosen]
            return Placement(start, tuple(start + line for line in chosen), end, tuple(depths))
        depths = [niah_text.DEPTHS[rng.integers(len(niah_text.DEPTHS))]]
        if count > 1:
            depths = sorted(rng.choice(niah_text.DEPTHS, size=count, replace=False).tolist())
        starts = self.haystack.starts
        first_sentence, next_sentence = np.searchsorted(starts, [start, end]).tolist()
        inserts = []
        for depth in depths:
            sentence = first_sentence + (next_sentence - first_sentence) * depth // 100
            inserts.append(int(starts[sentence]) if sentence < next_sentence else end)
        return Placement(start, tuple(inserts), end, tuple(depths))

    def context(self, needle: Needle, place: Placement) -> str:
        """The haystack with the needles in it."""
        borders = [place.start, *place.inserts, place.end]
        nothing = [""] if place.spaced else []
        parts: list[str] = []
        for n, sentence in enumerate(needle.sentences):
            parts += [*(self.haystack.units[borders[n] : borders[n + 1]] or nothing), sentence]
        parts += self.haystack.units[borders[-2] : borders[-1]] or nothing
        return self.haystack.joiner.join(parts)

    def prompt(self, needle: Needle, place: Placement) -> str:
        """The prompt's text, answer prefix included."""
        context = self.context(needle, place)
        return f"{self.header(needle)}\n{context}{self.question(needle)}"

    def prompt_ids(self, needle: Needle, place: Placement) -> np.ndarray:
        """The prompt's tokens, int64 [L], put together from pieces (see `check_pieces`).

        For tasks with one needle.
        """
        ids, offsets = self.haystack.ids, self.haystack.offsets
        (sentence,), (insert,) = needle.sentences, place.inserts
        before = ids[offsets[place.start] : offsets[insert]]
        if insert > place.start:
            opening = self.encode("\n" + self.haystack.units[place.start])
            before = before[offsets[place.start + 1] - offsets[place.start] :]
            middle = self.encode(self.haystack.joiner + sentence)
        else:
            opening, middle = [], self.encode("\n" + sentence)
        return np.concatenate(
            [
                self.encode(self.header(needle)),
                opening,
                before,
                middle,
                ids[offsets[insert] : offsets[place.end]],
                self.encode(self.question(needle)),
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
