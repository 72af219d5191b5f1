"""One look for all figures: colour-blind-safe, legible on a phone, the same bytes every time."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, the most distinct first; markers and dashes repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Nine beside seven colours: no pair of the first 63 things looks alike.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
DASHES: tuple[str, ...] = ("-", "--", "-.", ":")
WIDTH = 6.0  # inches: at 1200 pixels wide the text still reads on a phone

_RC: Any = {
    "font.size": 11,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "svg.hashsalt": "forgetmenot",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Drawn:
    """A finished figure: file stem, heading, caption, and its PNG and SVG bytes."""

    name: str
    title: str
    caption: str
    png: bytes
    svg: bytes


@contextmanager
def look() -> Iterator[None]:
    """Apply the look while a figure is drawn and saved; nothing global changes."""
    with matplotlib.rc_context(_RC):
        yield


def finish(figure: Figure, name: str, title: str, caption: str) -> Drawn:
    """Save a figure as PNG (200 dots per inch) and SVG without dates in them."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=200, bbox_inches="tight")
    figure.savefig(svg, format="svg", bbox_inches="tight", metadata={"Date": None})
    return Drawn(name, title, caption, png.getvalue(), svg.getvalue())


def panels(
    count: int, height: float, share_x: bool = False, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels below each other, each `height` inches tall."""
    figure = Figure(figsize=(WIDTH, height * count), layout="constrained")
    axes = figure.subplots(count, 1, squeeze=False, sharex=share_x, sharey=share_y)
    return figure, list(axes[:, 0])


def line_style(index: int) -> dict[str, Any]:
    """Colour, marker and dash of the thing numbered `index`."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
    }


def legend(figure: Figure) -> None:
    """One legend of all panels above the figure, two entries a line so that it fits a phone."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(named.values(), named.keys(), loc="outside upper left", ncols=2)
