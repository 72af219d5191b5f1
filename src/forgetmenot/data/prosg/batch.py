"""Training batches: prompt, then a body with several probes at exact distances."""

from collections.abc import Sequence

import numpy as np

from forgetmenot.data.prosg.body import MODES
from forgetmenot.data.prosg.items import Cell, Items, draw_items
from forgetmenot.data.prosg.task import rule_bound
from forgetmenot.data.prosg.templates import KINDS
from forgetmenot.data.prosg.world import World

IGNORED = -100


def prompt_tokens(world: World, items: Items) -> np.ndarray:
    """The prompt int64 [P]: `<prompt>`, the statements, `</prompt>`."""
    flat, _ = world.templates.render(items.statements)
    return np.concatenate([[world.open], flat, [world.close]])


def probe_rows(
    rng: np.random.Generator, world: World, items: Items, asked: np.ndarray
) -> np.ndarray:
    """Template rows [n, 4] that ask the items numbered `asked`, each in a random form."""
    forms = np.array([world.templates.probe[kind] for kind in KINDS])[items.kind[asked]]
    rows = np.empty((len(asked), 4), dtype=np.int64)
    rows[:, 0] = forms[:, 0] + (rng.random(len(asked)) * forms[:, 1]).astype(np.int64)
    rows[:, 1:] = items.slots[asked]
    return rows


def training_body(
    rng: np.random.Generator,
    world: World,
    items: Items,
    mode: str,
    distances: np.ndarray,
    length: int,
    held: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """A body of `length` tokens with a probe at each distance, each on another item.

    distances: ascending, in tokens since `</prompt>`; a probe's first token is at that position.
    Returns tokens and labels, int64 [length]; labels score only the answers, and in the mode
    "task" also what the rules ask for. When the prompt has fewer items than distances, a random
    choice of the distances is used. `held`: text for evaluation instead of text for training.
    """
    count = min(len(distances), len(items.kind))
    distances = np.sort(rng.choice(distances, count, replace=False))
    asked = rng.choice(len(items.kind), count, replace=False)
    flat, sizes = world.templates.render(probe_rows(rng, world, items, asked))
    ends = distances + sizes
    gaps = np.append(distances, length) - np.concatenate([[0], ends])
    segments = MODES[mode](rng, world, items, gaps.tolist(), held)
    pieces: list[np.ndarray] = []
    for segment, probe in zip(segments, np.split(flat, np.cumsum(sizes)[:-1]), strict=False):
        pieces += [segment, probe]
    tokens = np.concatenate([*pieces, segments[-1]])
    labels = np.full(length, IGNORED)
    labels[ends - 3] = tokens[ends - 2]  # a probe ends in "answer ."
    if mode == "task":
        # Only the written text counts: a probe may name what a rule says.
        bound = np.isin(np.concatenate(segments), rule_bound(world, items))
        written = np.ones(length, dtype=bool)
        for end, size in zip(ends, sizes, strict=True):
            written[end - size : end] = False
        places = np.flatnonzero(written)[bound]
        labels[places - 1] = tokens[places]
    return tokens, labels


def training_sequence(
    rng: np.random.Generator,
    world: World,
    cell: Cell,
    modes: Sequence[str],
    distances: np.ndarray,
    probes: int,
    held: bool = False,
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """Mode, prompt int64 [P], body int64 [T] and its labels int64 [T] of one sequence."""
    length = int(distances[-1]) + world.templates.longest_probe
    items = draw_items(rng, world, cell)
    mode = modes[int(rng.integers(len(modes)))]
    chosen = rng.choice(distances, min(probes, len(distances)), replace=False)
    body, labels = training_body(rng, world, items, mode, chosen, length, held)
    return mode, prompt_tokens(world, items), body, labels


def training_batch(
    rng: np.random.Generator,
    world: World,
    cell: Cell,
    modes: Sequence[str],
    distances: np.ndarray,
    probes: int,
    tokens: int,
) -> dict[str, np.ndarray]:
    """About `tokens` tokens of prompts and bodies of one cell; keys as `prosg_pf.Stream.batch`."""
    templates = world.templates
    length = int(distances[-1]) + templates.longest_probe
    statements = cell.facts * (1 + world.settings["updated_share"]) + cell.rules + cell.personas
    expected = length + 2 + statements * templates.length[: len(templates.length) // 2].mean()
    rows = [
        training_sequence(rng, world, cell, modes, distances, probes)
        for _ in range(max(1, round(tokens / expected)))
    ]
    _, prompts, bodies, labels = zip(*rows, strict=True)
    input_ids = np.stack(bodies)
    lm_labels = np.full_like(input_ids, IGNORED)
    lm_labels[:, :-1] = input_ids[:, 1:]
    prompt_ids, prompt_mask = left_pad(prompts, world.pad)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "input_ids": input_ids,
        "labels": np.stack(labels),
        "lm_labels": lm_labels,
    }


def left_pad(rows: Sequence[np.ndarray], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as int64 [B, P] that end together, and the mask bool [B, P]."""
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), pad)
    for line, row in zip(ids, rows, strict=True):
        line[longest - len(row) :] = row
    lengths = np.array([len(row) for row in rows])
    return ids, np.arange(longest) >= (longest - lengths)[:, None]
