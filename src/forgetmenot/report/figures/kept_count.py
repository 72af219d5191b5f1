"""Learnable token eviction during training: kept tokens of each layer, and the sparsity weight."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from forgetmenot.report.figures import style
from forgetmenot.report.results import TRAIN, Results, read_lines


def draw(study: str, variant: Mapping[str, Any], results: Results) -> style.Drawn | None:
    """Kept count and lambda of one variant (its first seed); None if its curve has none."""
    group = results.get(study, variant["name"], TRAIN)
    if not group:
        return None
    lines = [line for line in read_lines(group[0].directory / "curve.jsonl") if line.get("kept")]
    if not lines:
        return None
    with style.look():
        figure, (above, below) = style.panels(2, 2.6, share_x=True)
        steps = [line["step"] for line in lines]
        for layer in range(len(lines[0]["kept"])):
            heads = np.array([line["kept"][layer] for line in lines], dtype=float)
            kind = style.line_style(layer) | {"markevery": max(1, len(steps) // 8)}
            above.plot(steps, heads.mean(1), label=f"eviction layer {layer + 1}", **kind)
            ends = heads.min(1), heads.max(1)
            above.fill_between(steps, *ends, color=kind["color"], alpha=0.15, lw=0)
            weights = np.array([line["lambda"][layer] for line in lines], dtype=float)
            below.plot(steps, weights.mean(1), **kind)
            ends = weights.min(1), weights.max(1)
            below.fill_between(steps, *ends, color=kind["color"], alpha=0.15, lw=0)
        above.set(ylabel="kept tokens per head")
        above.set_ylim(bottom=0)
        below.set(xlabel="training step", ylabel="sparsity weight λ")
        style.legend(figure, above)
        title = f"Kept tokens and λ during training: {variant.get('label')} ({study})"
        caption = (
            f"Seed {group[0].seed}. Line: mean over heads of the tokens kept beyond the window; "
            "band: lowest to highest head. Below: the weight of the sparsity term, likewise."
        )
        return style.finish(figure, f"kept_count_{study}_{variant['name']}", title, caption)
