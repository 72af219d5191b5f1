"""The ProSG-PF world: which words exist, what they are, and which pairs are held out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forgetmenot.data.prosg.filler import filler_stream
from forgetmenot.data.prosg.pairs import PairSplit
from forgetmenot.data.prosg.prose import UNKNOWN, Prose, frequent_words
from forgetmenot.data.prosg.templates import CUE, Templates, function_words
from forgetmenot.data.prosg.text import RunningText
from forgetmenot.data.prosg.words import ATTRIBUTES, ORDINALS, RELATIONS, coin
from forgetmenot.errors import UserError

PAD, OPEN, CLOSE, STOP = "<pad>", "<prompt>", "</prompt>", "."
POOLS = {
    "fact": "value",
    "persona": "attribute_value",
    "trigger": "code",
    "periodic": "keyword",
    "prefix": "keyword",
    "forbid": "keyword",
    "format": "keyword",
    "counter": "attribute",
}
"""Item kind -> the group of words its answer is drawn from (the ranked choice)."""


class World:
    """Vocabulary, word groups and hold-outs. Every word is one token.

    `tokens[i]` is the word of id i; `groups[name]` the id range of a group; `filler` a long run of
    filler sentences, int64, of which the last tenth is kept for evaluation; `prose` the same of
    real sentences, for worlds with the body mode "real". `cue` int64 [3]: what asks for an answer
    under the rules.
    """

    def __init__(
        self,
        tokens: list[str],
        groups: Mapping[str, range],
        settings: Mapping[str, Any],
        filler: np.ndarray,
        prose: np.ndarray | None = None,
    ) -> None:
        self.tokens, self.groups, self.settings = tokens, groups, settings
        self.ids = {word: index for index, word in enumerate(tokens)}
        self.filler = RunningText(filler, self.ids[STOP])
        self.prose = None if prose is None else RunningText(prose, self.ids[STOP])
        self.cue = self.encode(CUE)
        self.pad, self.open, self.close, self.stop = (self.ids[w] for w in (PAD, OPEN, CLOSE, STOP))
        self.templates = Templates(self.ids)
        self.facts = PairSplit(len(groups["entity"]), len(groups["value"]))
        self.triggers = PairSplit(len(groups["trigger"]), len(groups["code"]))
        self.ordinals = np.array([self.ids[word] for word in ORDINALS])

    @classmethod
    def create(cls, settings: Mapping[str, Any], prose: Prose | None = None) -> "World":
        """A world from its settings alone (see `prosg_pf.Options` for the keys).

        The words of `prose` come last, so that a world is the same with and without them. Words
        that the world has for a thing of its own are <unk> in prose, or it would speak of them.
        """
        rng = np.random.Generator(np.random.Philox(key=settings["seed"]))
        tokens = [PAD, OPEN, CLOSE, STOP, *function_words()]
        tokens += [word for word in ORDINALS if word not in tokens]
        taken = {*tokens, *RELATIONS, *ATTRIBUTES}
        groups: dict[str, range] = {}

        def add(name: str, words: list[str]) -> None:
            groups[name] = range(len(tokens), len(tokens) + len(words))
            tokens.extend(words)

        add("relation", list(RELATIONS[: settings["relations"]]))
        add("attribute", list(ATTRIBUTES[: settings["attributes"]]))
        add("entity", coin(rng, settings["entities"], 3, taken, capital=True))
        add("value", coin(rng, settings["values"], 2, taken))
        add("attribute_value", coin(rng, settings["attribute_values"], 2, taken))
        add("trigger", coin(rng, settings["triggers"], 2, taken, capital=True))
        add("code", [f"code{number}" for number in range(settings["codes"])])
        add("keyword", coin(rng, settings["keywords"], 2, taken))
        add("filler", coin(rng, settings["filler_words"], 2, taken))
        filler = filler_stream(
            rng,
            groups["filler"],
            settings["filler_classes"],
            settings["filler_tokens"],
            tokens.index(STOP),
        )
        if prose is None:
            return cls(tokens, groups, settings, filler)
        add("prose", [UNKNOWN, *frequent_words(prose.train, settings["prose_words"], set(tokens))])
        ids = prose_ids(tokens, groups, [*prose.train, *prose.heldout])
        return cls(tokens, groups, settings, filler, ids)

    @classmethod
    def load(cls, path: Path) -> "World":
        """The world of a built folder. Raises UserError when a file is missing or not ours."""
        try:
            tokens = json.loads((path / "vocab.json").read_text())
            meta = json.loads((path / "meta.json").read_text())
            groups = {name: range(*ends) for name, ends in meta["groups"].items()}
            filler = np.load(path / "filler.npy", allow_pickle=False).astype(np.int64)
            prose = None
            if "prose" in groups:
                prose = np.load(path / "prose.npy", allow_pickle=False).astype(np.int64)
            return cls(tokens, groups, meta["world"], filler, prose)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not a built ProSG-PF folder ({error}); vocab.json, meta.json, filler.npy "
                "and, for real text, prose.npy as this version of the prosg_pf builder writes "
                "them are needed"
            ) from error

    def chance(self, kind: str) -> float:
        """Accuracy of a uniform guess over the answers of an item kind."""
        return 1 / len(self.groups[POOLS[kind]])

    def text(self, ids: np.ndarray) -> str:
        """Readable text, a sentence a line; `encode` inverts it."""
        return " ".join(self.tokens[i] for i in ids).replace(" . ", " .\n")

    def encode(self, text: str) -> np.ndarray:
        """Token ids int64 of a text. Raises UserError on a word outside the vocabulary."""
        try:
            return np.array([self.ids[word] for word in text.split()], dtype=np.int64)
        except KeyError as error:
            raise UserError(f"the word {error} is not in vocab.json of this world") from error


def prose_ids(tokens: list[str], groups: Mapping[str, range], words: list[str]) -> np.ndarray:
    """Token ids int64 of real prose: English words of the world, words of `prose`, or <unk>.

    Coined words are <unk> too where a real word looks the same: prose must not name values.
    """
    coined = range(groups["entity"].start, groups["prose"].start)
    ids = {word: index for index, word in enumerate(tokens) if index not in coined}
    return np.array([ids.get(word, ids[UNKNOWN]) for word in words], dtype=np.int64)
