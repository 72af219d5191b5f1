"""Checks that a world is large enough for what is asked of it."""

from collections.abc import Sequence

import numpy as np

from forgetmenot.data.prosg.items import Cell, cast_size
from forgetmenot.data.prosg.task import shortest_segment
from forgetmenot.data.prosg.world import World
from forgetmenot.errors import UserError


def require_evaluable(
    world: World, cells: Sequence[tuple[Cell, list[int]]], modes: Sequence[str]
) -> None:
    """Raise UserError unless every evaluation cell, given with its distances, can be drawn."""
    _require_cells(world, [cell for cell, _ in cells])
    for cell, distances in cells:
        room = shortest_segment(cell.rules)
        if {"task", "self"} & {*modes} and min(np.diff(distances), default=room) < room:
            raise UserError(
                f"distances: found {distances}, allowed with the modes 'task' and 'self': at least "
                f"{room} tokens apart, so that a line under {cell.rules} rules fits between them"
            )
    longest = max((max(np.diff(d).tolist(), default=0) for _, d in cells), default=0)
    _require_text(world, longest, held=True)


def require_trainable(world: World, cells: Sequence[Cell], distances: np.ndarray) -> None:
    """Raise UserError unless probes fit between the distances and every prompt can be drawn."""
    _require_cells(world, cells)
    room = world.templates.longest_probe
    if len(distances) > 1 and np.diff(distances).min() < room:
        raise UserError(
            f"distances: found {distances.tolist()}, allowed: at least {room} tokens apart "
            "(the longest probe), so that probes do not overlap"
        )
    _require_text(world, int(distances[-1]), held=False)


def require_modes(world: World, modes: Sequence[str]) -> None:
    """Raise UserError when bodies of real text are asked for and the world has none."""
    if "real" in modes and world.prose is None:
        raise UserError(
            "modes: found 'real', but this dataset was built without real text; "
            "name 'real' in the `modes` of its builder, and a corpus in `needs`"
        )


def _require_cells(world: World, cells: Sequence[Cell]) -> None:
    groups = world.groups
    for cell in cells:
        # Beside the cast one entity must be left for interference to speak of.
        people = cast_size(cell.facts, len(groups["relation"])) + 1
        _at_least("facts", cell.facts, "entities", people, len(groups["entity"]))
        _at_least("personas", cell.personas, "attributes", cell.personas, len(groups["attribute"]))
        for name in ("trigger", "keyword"):
            _at_least("rules", cell.rules, f"{name}s", cell.rules, len(groups[name]))


def _at_least(key: str, found: int, other: str, needed: int, present: int) -> None:
    if present < needed:
        raise UserError(
            f"{key}: found {found}, which needs {needed} {other}; this world has {present}"
        )


def _require_text(world: World, longest: int, held: bool) -> None:
    needed = 2 * longest + 100  # room for whole sentences and for different places
    for key, text in {"filler_tokens": world.filler, "prose_tokens": world.prose}.items():
        present = 0 if text is None else len(text.region(held))
        if text is not None and present < needed:
            raise UserError(
                f"{key}: found {len(text.ids)}, of which {present} are for this use; "
                f"bodies with {longest} tokens in one piece need {needed}"
            )
