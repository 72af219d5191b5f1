"""Training loss and accuracy on each source of a mixture of data, one line a variant."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from forgetmenot.report.figures import curves, style
from forgetmenot.report.names import Names
from forgetmenot.report.results import Results

HEIGHT = 2.2  # inches of a source's row of panels


def draw(
    study: str, config: Mapping[str, Any], results: Results, styles: Mapping[str, int], known: Names
) -> style.Drawn | None:
    """A row a source, loss on the left, accuracy on the right; None unless curves tell them apart.

    `styles` numbers the variants' looks.
    """
    found = curves.read(study, config, results)
    sources = _sources(found)
    if not sources:
        return None
    with style.look():
        figure = Figure(figsize=(style.WIDTH, HEIGHT * len(sources) + 0.8), layout="constrained")
        rows = figure.subplots(len(sources), 2, squeeze=False, sharex=True)
        for (left, right), source in zip(rows, sources, strict=True):
            for variant in config["variants"]:
                runs = found.get(variant["name"], [])
                look = style.line_style(styles[variant["name"]])
                label = known.variant(variant["name"])
                curves.plot(left, runs, f"loss/{source}", label, look)
                curves.plot(right, runs, f"accuracy/{source}", label, look, factor=100)
            _name(left, right, source)
        for axes in rows[-1]:
            axes.set_xlabel("training tokens (millions)")
        style.legend(figure)
        title = f"Learning curves by source of the data: {known.study(study)}"
        caption = (
            "Left: training loss (nats per scored token); right: scored tokens predicted exactly "
            "(%). Each source alone, as the data of the study name it (see what was trained on "
            "what); #2 is the second entry of the same name. Averaged over a sliding window of a "
            f"{curves.SHARE}th of the run. Line: mean over seeds; band: lowest to highest seed."
        )
        return style.finish(figure, f"source_curves_{study}", title, caption)


def _sources(found: Mapping[str, Sequence[curves.Run]]) -> list[str]:
    """Names after "loss/", in the order in which the curves have them first."""
    keys = [key for runs in found.values() for run in runs for line in run for key in line]
    return [k.removeprefix("loss/") for k in dict.fromkeys(keys) if k.startswith("loss/")]


def _name(left: Axes, right: Axes, source: str) -> None:
    left.set_title(f"{source}: loss", fontsize=10, loc="left")
    right.set_title(f"{source}: accuracy (%)", fontsize=10, loc="left")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
