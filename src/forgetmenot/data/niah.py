"""Needle in a haystack, after RULER: the test sets and training documents like them.

niah_1 hides a number among repeated sentences, niah_2 a number in prose, niah_3 a UUID in prose
(S-NIAH-1 to 3); niah_multikey hides numbers of four keys and asks for one, niah_multivalue four
numbers of one key, niah_multiquery asks for the numbers of four keys. Test prose is the corpus's
held-out documents, or a folder of essays (RULER's are Paul Graham's); training prose is the
corpus's training documents. Keys and random streams of the two splits are disjoint as well.
`niah_sample` lists how the placing differs from RULER's; `niah_nominal` repeats RULER's.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from forgetmenot.data import niah_haystack, niah_nominal, niah_text
from forgetmenot.data.inputs import only_input
from forgetmenot.data.niah_haystack import Haystack, encode
from forgetmenot.data.niah_needle import Needle
from forgetmenot.data.niah_sample import Placement, Writer
from forgetmenot.data.sampling import sample_rng
from forgetmenot.data.tokenizer_folder import load_tokenizer, read_tokenizer_meta
from forgetmenot.errors import UserError
from forgetmenot.files import write_json, write_text

IGNORED = -100
TRAIN_TEXT = "haystack.txt"


@dataclass(frozen=True)
class Options:
    """The built set: test prompts, and prose for the Stream."""

    tasks: list[
        Literal["niah_1", "niah_2", "niah_3", "niah_multikey", "niah_multivalue", "niah_multiquery"]
    ]  # which of the tasks
    lengths: list[int]  # tokens of BOS, prompt and answer, at most
    samples: int = 100  # test prompts per task and length
    seed: int = 0  # of the test prompts; they never coincide with training's streams
    words: int = 200_000  # words of prose to draw from, of each split
    # tokens: a context is filled to the token; nominal: in lm-eval's steps of 500 words.
    fill: Literal["tokens", "nominal"] = "tokens"
    essays: str | None = None  # folder of *.txt as test prose; null = held-out documents

    def __post_init__(self) -> None:
        for key in ("tasks", "lengths"):
            found = getattr(self, key)
            if not found or len(set(found)) != len(found):
                raise ValueError(f"{key}: found {found}, allowed: distinct, at least one")
        for key, least in (("samples", 1), ("seed", 0), ("words", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}: found {getattr(self, key)}, allowed: {least} or more")


@dataclass(frozen=True)
class StreamOptions:
    """Training documents: each batch draws one length, each of its rows one task, uniformly.

    Brief rows hold the context and the answer prefix alone. They can be much shorter than the
    benchmark's prompt, and a small model learns to copy from them first.
    """

    lengths: list[int]  # tokens of a row
    tasks: list[Literal["niah_1", "niah_2", "niah_3"]]  # which of the tasks
    answer_only: bool = True  # score the answer (and the EOS after it) alone; false: every token
    brief: list[int] = field(default_factory=list)  # as `lengths`, of rows without instructions

    def __post_init__(self) -> None:
        for key in ("tasks", "lengths"):
            if not getattr(self, key):
                raise ValueError(f"{key}: found an empty list, allowed: at least one entry")


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Write test/<task>-<length>.jsonl, meta.json, the tokenizer's files and training prose.

    Test lines: {"id", "task", "length", "index", "depth" (percent; a mean over the needles asked
    for), "input" (prompt with answer prefix), "outputs": [values], "tokens" (of BOS and prompt)}.
    The inputs are a corpus folder (heldout.jsonl) and a tokenizer folder, told apart by their
    files. Raises UserError when a length leaves no room for a task, when the test prose is shorter
    than a length, or when the tokenizer does not preserve a value.
    """
    corpus = only_input("niah", inputs, "heldout.jsonl")
    folder = only_input("niah", inputs, "tokenizer.json")
    meta = read_tokenizer_meta(folder)
    if options.essays is None:
        haystack, text = "held-out", niah_haystack.draw_text(corpus, "heldout", options.words)
    else:
        haystack, text = "essays", niah_haystack.read_essays(Path(options.essays))
    writers = _writers(folder, text, options.tasks, max(options.lengths))
    for task in options.tasks:
        for length in options.lengths:
            writers[task].require_room(task, "test", length)
            lines = [
                sample(writers[task], task, length, index, options.seed, options.fill)
                for index in range(options.samples)
            ]
            write_text(
                out / "test" / f"{task}-{length}.jsonl",
                "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
            )
    write_text(out / TRAIN_TEXT, niah_haystack.draw_text(corpus, "train", options.words))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, out / name)
    kept = {key: meta[key] for key in ("vocab_size", "bos_id", "eos_id", "pad_id")}
    made = {key: getattr(options, key) for key in ("tasks", "lengths", "samples", "fill")}
    write_json(out / "meta.json", kept | made | {"haystack": haystack})


def sample(
    writer: Writer, task: str, length: int, index: int, seed: int, fill: str = "tokens"
) -> dict[str, Any]:
    """One test line; a function of the arguments, whichever other samples are made."""
    rng = sample_rng(seed, task, length, index)
    needle = writer.draw(rng, task, "test", length)
    place = (niah_nominal.place if fill == "nominal" else _fill)(writer, rng, needle, length)
    prompt = writer.prompt(needle, place)
    ids = encode(writer.tokenizer, prompt)
    kept = writer.tokenizer.decode(ids)
    for value in needle.values:
        if value not in kept:
            raise UserError(
                f"niah: {task} at length {length}: the tokenizer does not preserve {value!r}"
            )
    pairs = zip(needle.pairs, place.depths, strict=True)
    depths = [depth for (key, _), depth in pairs if key in needle.asked]
    return {
        "id": f"{task}-{length}-{index}",
        "task": task,
        "length": length,
        "index": index,
        "depth": round(sum(depths) / len(depths)),
        "input": prompt,
        "outputs": needle.values,
        "tokens": 1 + len(ids),
    }


def _fill(writer: Writer, rng: np.random.Generator, needle: Needle, length: int) -> Placement:
    """Fill the context to the token."""
    place = writer.place(rng, needle, length)
    limit = length - 1 - len(writer.encode(needle.answer))
    # The first try fits but for tokenizers whose tokens reach across words.
    for end in range(place.end, place.start - 1, -1):
        shorter = place.cut(end)
        if len(encode(writer.tokenizer, writer.prompt(needle, shorter))) <= limit:
            return shorter
    raise UserError(f"niah: {needle.task} at length {length}: the tokenizer leaves no room")


class Stream:
    """Training documents for a built folder: BOS, prompt, answer, EOS, then padding."""

    def __init__(self, path: Path, options: StreamOptions) -> None:
        """Tokenise the training prose once.

        Raises UserError when a length leaves no room for a task, the prose is shorter than a
        length, or the tokenizer's tokens reach across words.
        """
        self.options = options
        self.meta = read_tokenizer_meta(path)
        text = (path / TRAIN_TEXT).read_text(encoding="utf-8")
        longest = max([*options.lengths, *options.brief])
        self.writers = _writers(path, text, options.tasks, longest)
        brief = {
            task: Writer(writer.tokenizer, writer.haystack, brief=True)
            for task, writer in self.writers.items()
        }
        self.forms = [(length, self.writers) for length in options.lengths]
        self.forms += [(length, brief) for length in options.brief]
        for length, writers in self.forms:
            for task, writer in writers.items():
                writer.require_room(task, "train", length)
                rng = sample_rng(0, "pieces", task, length)
                needle = writer.draw(rng, task, "train", length)
                writer.check_pieces(needle, writer.place(rng, needle, length))

    def batch(self, rng: np.random.Generator, tokens: int) -> dict[str, np.ndarray]:
        """About `tokens` tokens of one length T: input_ids and labels, int64 [B, T]."""
        length, writers = self.forms[rng.integers(len(self.forms))]
        rows = max(1, tokens // length)
        document_BT = np.full((rows, length + 1), self.meta["pad_id"], dtype=np.int64)
        labels_BT = np.full((rows, length), IGNORED, dtype=np.int64)
        for row in range(rows):
            ids, answer_start = self._document(rng, length, writers)
            document_BT[row, : len(ids)] = ids
            first = answer_start - 1 if self.options.answer_only else 0
            labels_BT[row, first : len(ids) - 1] = ids[first + 1 :]
        return {"input_ids": document_BT[:, :-1], "labels": labels_BT}

    def _document(
        self, rng: np.random.Generator, length: int, writers: dict[str, Writer]
    ) -> tuple[np.ndarray, int]:
        """Token ids, at most length + 1, and the position of the answer's first token."""
        task = self.options.tasks[rng.integers(len(self.options.tasks))]
        writer = writers[task]
        needle = writer.draw(rng, task, "train", length)
        prompt = writer.prompt_ids(needle, writer.place(rng, needle, length))
        answer = writer.encode(needle.answer)
        ids = np.concatenate([[self.meta["bos_id"]], prompt, answer, [self.meta["eos_id"]]])
        return ids, 1 + len(prompt)


def _writers(folder: Path, text: str, tasks: list[Any], longest: int) -> dict[str, Writer]:
    """A writer for each task; tasks in prose share one tokenised haystack."""
    tokenizer = load_tokenizer(folder)
    haystacks: dict[bool, Haystack] = {}
    writers = {}
    for task in tasks:
        is_repeated = niah_text.FORMS[task].repeated
        if is_repeated not in haystacks:
            haystacks[is_repeated] = (
                niah_haystack.repeated(longest, tokenizer)
                if is_repeated
                else niah_haystack.prose(text, tokenizer)
            )
        writers[task] = Writer(tokenizer, haystacks[is_repeated])
    return writers
