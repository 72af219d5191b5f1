"""The wording of RULER's needle tasks: prompt, needles, keys and values.

Benchmark: Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language
Models?" (arXiv 2404.06654), tasks niah_single_1 to 3, niah_multikey_1, niah_multivalue and
niah_multiquery. The sentences are the benchmark's own; the lists of adjectives and nouns that make
up the keys are ours (RULER's keys are such pairs too).
"""

import uuid
from typing import Literal, NamedTuple

import numpy as np

Split = Literal["train", "test"]

HEADER = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards."
)
NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
QUESTION = "\nWhat is the special magic {kind} for {key} mentioned in the provided text?"
ANSWER_PREFIX = " The special magic {kind} for {key} mentioned in the provided text is"
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

# The same where more than one value is asked for.
HEADER_MANY = (
    "Some special magic {kind}s are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind}s afterwards."
)
QUESTION_MANY = "\nWhat are all the special magic {kind}s for {key} mentioned in the provided text?"
ANSWER_PREFIX_MANY = " The special magic {kind}s for {key} mentioned in the provided text are"


class Form(NamedTuple):
    """What a task hides and asks for: a 7-digit number or a UUID, for how many keys."""

    kind: Literal["number", "uuid"] = "number"
    repeated: bool = False  # the haystack: one repeated line, or prose
    keys: int = 1  # in the text
    values: int = 1  # of each key
    asked: int = 1  # keys in the question


FORMS = {
    "niah_1": Form(repeated=True),
    "niah_2": Form(),
    "niah_3": Form("uuid"),
    "niah_multikey": Form(keys=4),
    "niah_multivalue": Form(values=4),
    "niah_multiquery": Form(keys=4, asked=4),
}
# RULER's 40 depths of a needle in prose, in percent of the sentences before it.
DEPTHS = np.round(np.linspace(0, 100, num=40)).astype(int).tolist()

_ADJECTIVES = """
    able amber ancient bold brave brief bright broad calm careful clean clear clever cold common
    crisp curious dark deep dry eager early easy fair famous fine firm fresh gentle glad golden
    grand grateful great green happy hidden honest humble kind large late light lively long loud
    modern narrow new noble plain polite proud quick quiet rapid rare rich rough round sharp
    silent simple small soft steady
"""
_NOUNS = """
    apple arrow bank basket bell bird boat book bottle bridge cabin candle castle chair city cloud
    coast coin copper corner country desert door engine farm feather field fire forest garden gate
    glass harbor hill horse house island journey kettle lake lamp letter market meadow mirror
    mountain needle ocean orchard paper picture pilot river road school shadow ship silver station
    stone table tower train
"""
KEYS = {
    split: [
        f"{adjective}-{noun}"
        for i, adjective in enumerate(_ADJECTIVES.split())
        for j, noun in enumerate(_NOUNS.split())
        if (i + j) % 2 == parity
    ]
    for parity, split in enumerate(("train", "test"))
}


def draw_key(rng: np.random.Generator, split: Split) -> str:
    """An adjective-noun pair. No pair serves both splits, while each of the words does."""
    return KEYS[split][rng.integers(len(KEYS[split]))]


def draw_value(rng: np.random.Generator, task: str) -> str:
    """A 7-digit number without leading zero, or a random (version 4) UUID."""
    if FORMS[task].kind == "uuid":
        return str(uuid.UUID(bytes=rng.bytes(16), version=4))
    return str(rng.integers(10**6, 10**7 - 1, endpoint=True))
