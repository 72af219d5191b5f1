"""ProSG-PF: prompts with facts, persona and rules, then text in which they are to be remembered.

The dataset of ProSG (arXiv 2311.01981) is not public; this set is a proposal of ours in its place
(docs/prosg-pf.md). Word level: every word, entity and value is one token.
"""

import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from forgetmenot.data.inputs import only_input
from forgetmenot.data.prosg.batch import training_batch
from forgetmenot.data.prosg.evalset import draw_record, file_name, planned, write_records
from forgetmenot.data.prosg.examples import write_examples
from forgetmenot.data.prosg.items import Cell
from forgetmenot.data.prosg.prose import UNKNOWN, read_prose
from forgetmenot.data.prosg.publish import publish
from forgetmenot.data.prosg.trainset import write_sequences
from forgetmenot.data.prosg.validate import require_evaluable, require_modes, require_trainable
from forgetmenot.data.prosg.world import POOLS, World
from forgetmenot.errors import UserError
from forgetmenot.files import write_bytes, write_json


@dataclass(frozen=True)
class Options:
    """The world and its evaluation files. The defaults are the full-size set."""

    seed: int = 0  # of names, grammar and evaluation samples
    entities: int = 4096  # names that facts are about
    relations: int = 32  # what is said of them, at most 32
    values: int = 256  # values, one pool shared by all relations; chance is 1 / values
    templates: int = 8  # surface forms a relation, 3 to 10; two of each are held out
    attributes: int = 16  # persona attributes, at most 16
    attribute_values: int = 256  # their values, one shared pool
    triggers: int = 256  # trigger words of trigger rules
    codes: int = 256  # what is said after a trigger
    keywords: int = 512  # words of the other rules
    filler_words: int = 4000  # word list of the filler grammar, apart from the world's words
    filler_classes: int = 32  # word classes of the filler grammar
    filler_tokens: int = 1_000_000  # filler text made; the last tenth is for evaluation only
    prose_words: int = 4000  # words of real text that are no word of the world; others are <unk>
    prose_tokens: int = 1_000_000  # real text kept, at most; a tenth from held-out documents
    updated_share: float = 0.1  # share of facts that the prompt itself updates (latest wins)
    splits: list[Literal["iid", "new-pairs", "new-templates", "long", "dense", "rules-new"]] = (
        field(
            default_factory=lambda: [
                "iid",
                "new-pairs",
                "new-templates",
                "long",
                "dense",
                "rules-new",
            ]
        )
    )
    # Kinds of body, a file each. "real" needs a corpus among the inputs; "self" has no text, the
    # model writes it when it is evaluated; in "task" the rules are in force.
    modes: list[Literal["neutral", "interfering", "real", "self", "task"]] = field(
        default_factory=lambda: ["neutral", "interfering"]
    )
    facts: list[int] = field(default_factory=lambda: [4, 16, 32, 64])  # per prompt, a file each
    dense_facts: list[int] = field(default_factory=lambda: [128])  # the same, of split dense
    rules: int = 4  # rules per prompt
    rule_kinds: list[Literal["trigger", "periodic", "prefix", "forbid", "format", "counter"]] = (
        field(
            default_factory=lambda: ["trigger", "periodic", "prefix", "forbid", "format", "counter"]
        )
    )
    personas: int = 4  # persona attributes per prompt
    distances: list[int] = field(  # tokens since </prompt> at which evaluation asks
        default_factory=lambda: [0, 32, 64, 128, 256, 512, 1024]
    )
    long_distances: list[int] = field(  # the same, of split long
        default_factory=lambda: [0, 1024, 2048, 4096]
    )
    probes: int = 4  # facts asked per sample, at most; as many attributes, as many rules
    samples: int = 500  # samples per file
    train_samples: int = 0  # training sequences as a file, for users without this project's code
    validation_samples: int = 0  # the same, with filler and prose of the part for evaluation

    def __post_init__(self) -> None:
        least = {
            "seed": 0, "entities": 2, "relations": 1, "values": 4, "attributes": 1,
            "attribute_values": 2, "triggers": 1, "codes": 4, "keywords": 1, "filler_words": 1,
            "filler_classes": 1, "filler_tokens": 1, "prose_words": 0, "prose_tokens": 1,
            "templates": 3, "rules": 0, "personas": 0, "probes": 1, "samples": 1,
            "train_samples": 0, "validation_samples": 0,
        }  # fmt: skip
        most = {"relations": 32, "attributes": 16, "templates": 10}
        for key, low in least.items():
            found, high = getattr(self, key), most.get(key)
            if found < low or (high is not None and found > high):
                allowed = f"{low} or more" if high is None else f"{low} to {high}"
                raise ValueError(f"{key}: found {found}, allowed: {allowed}")
        if not 0 <= self.updated_share <= 1:
            raise ValueError(f"updated_share: found {self.updated_share}, allowed: 0 to 1")
        for key in ("splits", "modes", "facts", "rule_kinds", "distances"):
            if not getattr(self, key):
                raise ValueError(f"{key}: found an empty list, allowed: at least one entry")
        for key in ("distances", "long_distances"):
            found = getattr(self, key)
            if found != sorted(set(found)) or (found and found[0] != 0):
                raise ValueError(f"{key}: found {found}, allowed: ascending, beginning with 0")
        for key in ("facts", "dense_facts"):
            if any(count < 1 for count in getattr(self, key)):
                raise ValueError(f"{key}: found {getattr(self, key)}, allowed: 1 or more each")


@dataclass(frozen=True)
class StreamOptions:
    """Training sequences. Each batch draws one number of facts and one longest distance.

    Recall is learned sooner when short bodies are in the mix, hence the drawn longest distance;
    repeat an entry of `facts` or `modes` to give it more weight.
    """

    facts: list[int]  # facts per prompt
    distances: list[int] = field(  # tokens since </prompt> at which a probe may start
        default_factory=lambda: [0, 32, 64, 128, 256, 512, 1024]
    )
    rules: int = 4  # rules per prompt
    rule_kinds: list[Literal["trigger", "periodic", "prefix", "forbid", "format", "counter"]] = (
        field(
            default_factory=lambda: ["trigger", "periodic", "prefix", "forbid", "format", "counter"]
        )
    )
    personas: int = 4  # persona attributes per prompt
    probes: int = 4  # probes per body, each at another distance and on another item
    modes: list[Literal["neutral", "interfering", "real", "task"]] = field(
        default_factory=lambda: ["neutral", "interfering"]
    )

    def __post_init__(self) -> None:
        for key in ("facts", "distances", "modes", "rule_kinds"):
            if not getattr(self, key):
                raise ValueError(f"{key}: found an empty list, allowed: at least one entry")
        if any(count < 1 for count in self.facts):
            raise ValueError(f"facts: found {self.facts}, allowed: 1 or more each")
        for key, low in {"rules": 0, "personas": 0, "probes": 1}.items():
            if getattr(self, key) < low:
                raise ValueError(f"{key}: found {getattr(self, key)}, allowed: {low} or more")
        if self.distances != sorted(set(self.distances)) or self.distances[0] < 0:
            raise ValueError(f"distances: found {self.distances}, allowed: ascending, 0 or more")


class Stream:
    """Training batches of a built folder. Draws only from the training side of the hold-outs."""

    def __init__(self, path: Path, options: StreamOptions) -> None:
        """Raises UserError when the folder is no ProSG-PF set or its world is too small."""
        self.world, self.options = World.load(path), options
        self.cells = [
            Cell("train", facts, options.rules, options.personas, tuple(options.rule_kinds))
            for facts in options.facts
        ]
        self.distances = np.array(options.distances)
        require_modes(self.world, options.modes)
        require_trainable(self.world, self.cells, self.distances)

    def batch(self, rng: np.random.Generator, tokens: int) -> dict[str, np.ndarray]:
        """About `tokens` tokens, prompts and bodies together.

        prompt_ids int64 [B, P] and prompt_mask bool [B, P] (left-padded); input_ids int64 [B, T],
        the bodies; labels int64 [B, T], -100 except where the next token is an answer; lm_labels
        int64 [B, T], the next token everywhere (-100 at the end). In bodies of the mode "task",
        labels score what the rules ask for as well.
        """
        cell = self.cells[rng.integers(len(self.cells))]
        fewest = min(self.options.probes, len(self.distances))
        horizon = rng.integers(fewest, len(self.distances) + 1)
        return training_batch(
            rng,
            self.world,
            cell,
            self.options.modes,
            self.distances[:horizon],
            self.options.probes,
            tokens,
        )


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Write a dataset folder that this project and `datasets.load_dataset` read.

    vocab.json, meta.json, filler.npy, eval/<split>-<mode>-n<facts>.jsonl, rules.jsonl, seeds.json
    and the card README.md; with the mode "real" prose.npy, from the one input that is a corpus;
    train.jsonl and validation.jsonl if asked for. Raises UserError when the world is too small for
    the prompts or its text for the bodies, and when the corpus is missing.
    """
    prose = None
    if "real" in options.modes:
        prose = read_prose(only_input("prosg_pf", inputs, "heldout.jsonl"), options.prose_tokens)
    world = World.create(asdict(options), prose)
    require_evaluable(world, planned(options), options.modes)
    _write_evaluation(out, world, options)
    _write_training(out, world, options)
    write_examples(out / "rules.jsonl", world)
    write_json(out / "vocab.json", world.tokens)
    _write_array(out / "filler.npy", world.filler.ids)
    meta = {
        "vocab_size": len(world.tokens),
        "chance": {kind: world.chance(kind) for kind in POOLS},
        "groups": {name: [ids.start, ids.stop] for name, ids in world.groups.items()},
        "world": asdict(options),
    }
    if prose is not None and world.prose is not None:
        _write_array(out / "prose.npy", world.prose.ids)
        unknown = float((world.prose.ids == world.ids[UNKNOWN]).mean())
        meta["prose"] = {"unknown_share": unknown, "origins": prose.origins}
    write_json(out / "meta.json", meta)
    publish(out, options, meta)


def _write_evaluation(out: Path, world: World, options: Options) -> None:
    for cell, distances in planned(options):
        for mode in options.modes:
            records = [
                draw_record(world, cell, mode, distances, options.probes, index)
                for index in range(options.samples)
            ]
            write_records(out / file_name(cell.split, mode, cell.facts), records)


def _write_training(out: Path, world: World, options: Options) -> None:
    sizes = {"train": options.train_samples, "validation": options.validation_samples}
    if not any(sizes.values()):
        return
    kinds = tuple(options.rule_kinds)
    cells = [
        Cell("train", facts, options.rules, options.personas, kinds) for facts in options.facts
    ]
    distances = np.array(options.distances)
    require_trainable(world, cells, distances)
    modes = [mode for mode in options.modes if mode != "self"]
    if not modes:
        raise UserError("train_samples: allowed with a mode other than 'self' only")
    for name, samples in sizes.items():
        if samples:
            path = out / f"{name}.jsonl"
            write_sequences(path, world, cells, modes, distances, options.probes, samples)


def _write_array(path: Path, ids: np.ndarray) -> None:
    data = io.BytesIO()
    np.save(data, ids.astype(np.uint32), allow_pickle=False)
    write_bytes(path, data.getvalue())
