"""Checks that a world is large enough for what is asked of it."""

from collections.abc import Sequence

import numpy as np

from forgetmenot.data.prosg.items import Cell, cast_size
from forgetmenot.data.prosg.world import World
from forgetmenot.errors import UserError


def require_evaluable(world: World, cells: Sequence[tuple[Cell, list[int]]]) -> None:
    """Raise UserError unless every evaluation cell, given with its distances, can be drawn."""
    _require_cells(world, [cell for cell, _ in cells])
    longest = max((max(np.diff(d).tolist(), default=0) for _, d in cells), default=0)
    _require_filler(world, longest, len(world.filler) - world.eval_filler)


def require_trainable(world: World, cells: Sequence[Cell], distances: np.ndarray) -> None:
    """Raise UserError unless probes fit between the distances and every prompt can be drawn."""
    _require_cells(world, cells)
    room = world.templates.longest_probe
    if len(distances) > 1 and np.diff(distances).min() < room:
        raise UserError(
            f"distances: found {distances.tolist()}, allowed: at least {room} tokens apart "
            "(the longest probe), so that probes do not overlap"
        )
    _require_filler(world, int(distances[-1]), world.eval_filler)


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


def _require_filler(world: World, longest: int, present: int) -> None:
    needed = 2 * longest + 100  # room for whole sentences and for different places
    if present < needed:
        raise UserError(
            f"filler_tokens: found {len(world.filler)}, of which {present} are for this use; "
            f"bodies with {longest} tokens in one piece need {needed}"
        )
