"""The text itself with the tokens that each layer and head keeps."""

import json
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from forgetmenot.report.figures import style
from forgetmenot.report.names import Names
from forgetmenot.report.results import Result

SHOWN = 128  # tokens: what still reads on a phone
COLUMNS = 48  # characters in a line of text
LINE = 1.9  # height of a line of text with its marks, in text heights


def draw(result: Result, known: Names) -> style.Drawn | None:
    """One panel a layer: the text, a bar of marks under each token (a mark a head, left to right).

    Reads kept.json ({"tokens", "layers": [{"layer", "heads": [[bool]]}], "window", "sink",
    "budget"}); None if the folder has none.
    """
    path = result.directory / "kept.json"
    if not path.is_file():
        return None
    kept: dict[str, Any] = json.loads(path.read_text())
    tokens = [_printable(token) for token in kept["tokens"][:SHOWN]]
    places = _wrap(tokens)
    rows = places[-1][0] + 1
    with style.look():
        figure, panels = style.panels(len(kept["layers"]), 0.5 + 0.27 * rows)
        for axes, layer in zip(panels, kept["layers"], strict=True):
            _panel(axes, tokens, places, layer)
        title = f"Kept tokens: {known.variant(result.variant)} ({known.study(result.study)})"
        caption = (
            f"The first {len(tokens)} of {len(kept['tokens'])} tokens of one sample, seed "
            f"{result.seed}. Under each token one mark a head, left to right: filled is scored to "
            "be kept after the token has left the window; shading: share of heads. "
            f"Window {kept.get('window')}, first {kept.get('sink')} tokens always kept, budget a "
            f"head: {kept.get('budget') or 'none, or not the same in all layers'}. A head that "
            "scores more tokens than its budget holds the best of them."
        )
        name = f"kept_map_{result.study}_{result.variant}_seed{result.seed}"
        return style.finish(figure, name, title, caption)


def _printable(token: str) -> str:
    """A token as visible text: line breaks, tabs and blanks shown, never empty."""
    shown = token.replace("\n", "⏎").replace("\t", "→").strip(" ")
    return shown or "·"


def _wrap(tokens: list[str]) -> list[tuple[int, int]]:
    """Line and first character of each token; a blank between tokens."""
    places, line, column = [], 0, 0
    for token in tokens:
        if column and column + len(token) > COLUMNS:
            line, column = line + 1, 0
        places.append((line, column))
        column += len(token) + 1
    return places


def _panel(
    axes: Axes, tokens: list[str], places: list[tuple[int, int]], layer: dict[str, Any]
) -> None:
    heads = layer["heads"]
    for index, (token, (line, column)) in enumerate(zip(tokens, places, strict=True)):
        marks = [bool(head[index]) for head in heads]
        top, width = line * LINE, len(token)
        share = sum(marks) / len(marks)
        if share:
            box = Rectangle(
                (column, top), width, 1.0, fc=style.COLOURS[4], alpha=0.55 * share, lw=0
            )
            axes.add_patch(box)
        axes.text(column, top + 0.5, token, family="monospace", fontsize=9, va="center_baseline")
        for head, mark in enumerate(marks):
            each = width / len(marks)
            place = (column + head * each + 0.04, top + 1.08)
            colour = style.COLOURS[0] if mark else "none"
            axes.add_patch(Rectangle(place, each - 0.08, 0.32, fc=colour, ec="0.6", lw=0.4))
    counts = ", ".join(str(sum(map(bool, head))) for head in heads)
    axes.set_title(
        f"layer {layer['layer']}: scored to be kept, per head: {counts}", fontsize=10, loc="left"
    )
    axes.set(xlim=(-0.5, COLUMNS + 0.5), ylim=((places[-1][0] + 1) * LINE, -0.3))
    axes.axis("off")
