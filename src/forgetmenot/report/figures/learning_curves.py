"""Training loss over tokens, one line a variant."""

from collections.abc import Mapping
from typing import Any

from forgetmenot.report.figures import curves, style
from forgetmenot.report.results import Results


def draw(
    study: str, config: Mapping[str, Any], results: Results, styles: Mapping[str, int]
) -> style.Drawn | None:
    """Learning curves of one study; None if nothing was trained. `styles` numbers the looks."""
    found = curves.read(study, config, results)
    with style.look():
        figure, (axes,) = style.panels(1, 3.6)
        for variant in config["variants"]:
            look = style.line_style(styles[variant["name"]])
            label = variant.get("label") or variant["name"]
            curves.plot(axes, found[variant["name"]], "loss", label, look)
        if not axes.lines:
            return None
        axes.set(xlabel="training tokens (millions)", ylabel="loss (nats per scored token)")
        axes.set_ylim(bottom=0)
        style.legend(figure)
        title = f"Learning curves: {config.get('title') or study}"
        caption = (
            "Training loss over the whole mixture of data, averaged over a sliding window of a "
            f"{curves.SHARE}th of the run. Line: mean over seeds; band: lowest to highest seed, "
            "where there are several."
        )
        return style.finish(figure, f"learning_curves_{study}", title, caption)
