"""Nominal lengths, counted as lm-eval's copy of RULER counts them, for comparison with its numbers.

The haystack always starts at its beginning and grows in steps (500 words of prose; 5 repeated
lines, from 4,096 tokens up 25) while prompt, answer and 128 tokens to generate fit; the answer
prefix is not counted. So a prompt can be much shorter than its nominal length.
"""

import functools
from collections.abc import Iterator

import numpy as np

from forgetmenot.data.niah_haystack import encode
from forgetmenot.data.niah_needle import Needle
from forgetmenot.data.niah_sample import Placement, Writer
from forgetmenot.data.sampling import sample_rng
from forgetmenot.errors import UserError

GENERATED = 128


def place(writer: Writer, rng: np.random.Generator, needle: Needle, length: int) -> Placement:
    """Where the needles of one sample stand; a step less haystack if the sample is too long.

    Raises UserError when not even one step of haystack fits.
    """
    for end in range(_units(writer, needle.task, length), 0, -_step(needle, length)):
        found = _insert(writer, rng, needle, end)
        if _tokens(writer, needle, found, "") + GENERATED <= length:
            return found
    raise UserError(
        f"niah: {needle.task} at nominal length {length}: found no room for "
        f"{_step(needle, length)} units of haystack and {GENERATED} tokens to generate, allowed: "
        "longer, or fill: tokens"
    )


@functools.lru_cache(maxsize=16)  # the same for all samples of a task and length
def _units(writer: Writer, task: str, length: int) -> int:
    """Units of haystack that fit, measured with one drawn sample as RULER does."""
    rng = sample_rng(0, "nominal", task, length)
    needle = writer.draw(rng, task, "test", length)
    fits = 0
    for end in _ends(writer, needle, length):
        found = _insert(writer, rng, needle, end)
        if _tokens(writer, needle, found, " ".join(needle.values)) + GENERATED > length:
            break
        fits = end
    return fits


def _insert(writer: Writer, rng: np.random.Generator, needle: Needle, end: int) -> Placement:
    return writer.insert(rng, needle, 0, end)._replace(spaced=not needle.form.repeated)


def _ends(writer: Writer, needle: Needle, length: int) -> Iterator[int]:
    """Steps of the haystack, as far as it goes."""
    step, units = _step(needle, length), len(writer.haystack.units)
    yield from range(step, units + 1, step)
    if units % step:
        yield units


def _step(needle: Needle, length: int) -> int:
    if not needle.form.repeated:
        return 500
    return 5 if length < 4096 else 25


def _tokens(writer: Writer, needle: Needle, placed: Placement, answer: str) -> int:
    text = f"{needle.header}\n{writer.context(needle, placed)}{needle.question}{answer}"
    return 1 + len(encode(writer.tokenizer, text))
