"""Bodies: what follows the prompt. A body never depends on the values that the prompt states.

Every segment has an exact length and ends with a whole sentence; its first sentence may be cut.
(The mode "task" alone does depend on the prompt, and its sentences are whole: `task.py`.)
"""

from collections.abc import Callable, Sequence

import numpy as np

from forgetmenot.data.prosg.items import Items, fact_templates
from forgetmenot.data.prosg.task import task
from forgetmenot.data.prosg.world import World


def neutral(
    rng: np.random.Generator, world: World, items: Items, lengths: Sequence[int], held: bool
) -> list[np.ndarray]:
    """Segments int64 [length] of filler sentences, each from a place of its own."""
    return world.filler.segments(rng, lengths, held)


def real(
    rng: np.random.Generator, world: World, items: Items, lengths: Sequence[int], held: bool
) -> list[np.ndarray]:
    """Segments int64 [length] of real prose, each from a place of its own."""
    if world.prose is None:
        raise ValueError("mode: found 'real'; allowed for a world without prose: the others")
    return world.prose.segments(rng, lengths, held)


def interfering(
    rng: np.random.Generator, world: World, items: Items, lengths: Sequence[int], held: bool
) -> list[np.ndarray]:
    """Segments int64 [length] of facts about other entities, with the prompt's own relations.

    Their values are uniform over training pairs and independent of the prompt: avoiding the
    prompt's values would tell which ones it holds.
    """
    entities, relations = world.groups["entity"], world.groups["relation"]
    known = items.slots[: items.facts]
    count = sum(-(-size // world.templates.shortest_fact) for size in lengths)
    others = np.setdiff1d(np.arange(len(entities)), known[:, 0] - entities.start)
    entity = others[rng.integers(len(others), size=count)]
    relation = known[rng.integers(len(known), size=count), 1] - relations.start
    value = world.facts.draw(rng, entity, held=False)
    rows = np.empty((count, 4), dtype=np.int64)
    rows[:, 0] = world.templates.fact + fact_templates(rng, world, relation, held=False)
    rows[:, 1] = entity + entities.start
    rows[:, 2] = relation + relations.start
    rows[:, 3] = value + world.groups["value"].start
    flat, sizes = world.templates.render(rows)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    segments, used = [], 0
    for size in lengths:
        used = int(np.searchsorted(ends, ends[used] + size))
        segments.append(flat[ends[used] - size : ends[used]])
    return segments


def own(
    rng: np.random.Generator, world: World, items: Items, lengths: Sequence[int], held: bool
) -> list[np.ndarray]:
    """No segments: the model that is evaluated writes them (`evaluate.prosg_rollout`)."""
    return []


MODES: dict[str, Callable[..., list[np.ndarray]]] = {
    "neutral": neutral,
    "interfering": interfering,
    "real": real,
    "self": own,
    "task": task,
}
