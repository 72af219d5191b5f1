"""Figures of a report; each module draws one kind, or returns None if there is nothing to draw."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forgetmenot import files
from forgetmenot.report.figures import (
    axis_lines,
    frontier,
    kept_count,
    kept_map,
    learning_curves,
    niah_audit,
    niah_heat_map,
    prosg_memory,
    source_curves,
)
from forgetmenot.report.figures.style import Drawn
from forgetmenot.report.names import Names
from forgetmenot.report.results import Results
from forgetmenot.report.tables import Grid


def draw_all(
    studies: Mapping[str, Any],
    grids: Sequence[Grid],
    results: Results,
    known: Names,
    folder: Path,
) -> list[Drawn]:
    """Draw every figure that the results allow, write it to `folder` as PNG and SVG, return all."""
    styles = variant_styles(studies)
    found = [axis_lines.draw(grid, styles) for grid in grids]
    found += [frontier.draw(grid, styles) for grid in grids]
    for study, config in studies.items():
        found.append(learning_curves.draw(study, config, results, styles))
        found.append(source_curves.draw(study, config, results, styles, known))
        found += [kept_count.draw(study, variant, results, known) for variant in config["variants"]]
        for task in config["tasks"]:
            found.append(niah_heat_map.draw(study, config, task, results, known))
            found.append(prosg_memory.draw(study, config, task, results, known))
    drawn = [figure for figure in found if figure is not None]
    drawn += _kept_maps(results, known)
    for figure in drawn:
        files.write_bytes(folder / f"{figure.name}.png", figure.png)
        files.write_bytes(folder / f"{figure.name}.svg", figure.svg)
    return drawn


def variant_styles(studies: Mapping[str, Any]) -> dict[str, int]:
    """Number of each variant: its look in every figure, whichever paper's."""
    names = dict.fromkeys(v["name"] for study in studies.values() for v in study["variants"])
    return {name: number for number, name in enumerate(names)}


def _kept_maps(results: Results, known: Names) -> list[Drawn]:
    """The maps of the first seed of each variant that has them."""
    firsts = [group[0] for group in results.found.values()]
    drawn = [draw(result, known) for draw in (kept_map.draw, niah_audit.draw) for result in firsts]
    return [figure for figure in drawn if figure is not None]
