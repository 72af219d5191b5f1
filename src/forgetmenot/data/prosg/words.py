"""Words of the ProSG-PF world: a few English nouns, and coined words that mean nothing."""

import numpy as np

RELATIONS = (
    "job", "city", "pet", "drink", "song", "color", "tool", "sport", "fruit", "river", "street",
    "friend", "teacher", "garden", "boat", "game", "book", "flower", "dance", "star", "mountain",
    "spice", "hat", "stone", "bird", "train", "coin", "school", "lamp", "island", "bread", "market",
)  # fmt: skip
ATTRIBUTES = (
    "name", "mood", "accent", "rank", "title", "voice", "style", "role", "motto", "origin",
    "craft", "habit", "emblem", "guild", "creed", "temper",
)  # fmt: skip
ORDINALS = ("second", "third", "fourth", "fifth")
"""Rule periods 2, 3, 4, 5."""

_CONSONANTS = "bdfghjklmnprstvz"
_VOWELS = "aeiou"
_ENDINGS = ("", "n", "r", "s", "l")


def coin(
    rng: np.random.Generator, count: int, syllables: int, taken: set[str], capital: bool = False
) -> list[str]:
    """Draw `count` pronounceable words of `syllables` syllables and add them to `taken`.

    No word is in `taken` already; a longer word is tried when the short ones run out.
    """
    words: list[str] = []
    tries = 0
    while len(words) < count:
        tries += 1
        length = syllables + tries // (20 * count + 200)  # short words can run out
        letters = [
            _CONSONANTS[rng.integers(len(_CONSONANTS))] + _VOWELS[rng.integers(len(_VOWELS))]
            for _ in range(length)
        ]
        word = "".join(letters) + _ENDINGS[rng.integers(len(_ENDINGS))]
        word = word.capitalize() if capital else word
        if word not in taken:
            taken.add(word)
            words.append(word)
    return words
