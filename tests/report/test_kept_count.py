"""The figure of kept tokens: every layer and head, the target band, a logarithmic weight."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from forgetmenot.report import results
from forgetmenot.report.figures import kept_count, style
from forgetmenot.report.names import Names


@pytest.fixture
def figure(write_results: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Function that draws the figure of a run and returns matplotlib's."""
    drawn: list[Figure] = []
    finish = style.finish
    monkeypatch.setattr(style, "finish", lambda *rest: drawn.append(rest[0]) or finish(*rest))

    def draw(spoil: Any = lambda folder: None) -> Figure:
        spec = write_results({"gdn_lte": 0.6}, seeds=(0,))
        spoil(Path(spec["trains"]["recall/gdn_lte/seed0"]))
        found = results.load({}, spec["trains"])
        kept_count.draw("recall", {"name": "gdn_lte", "label": "laLTE"}, found, Names())
        return drawn[-1]

    return draw


def test_rows_are_layers_and_lines_are_heads(figure: Any) -> None:
    axes = figure().axes
    assert [panel.get_ylabel() for panel in axes[::2]] == ["layer 1", "layer 3"]
    kept, weight = axes[0], axes[1]
    heads = [line.get_ydata()[-1] for line in kept.lines[:3]]
    assert heads == pytest.approx([35.0, 30.0, 32.5])  # two heads and their mean
    assert weight.get_yscale() == "symlog"
    assert weight.lines[0].get_ydata()[-1] == pytest.approx(0.01)


def test_the_band_ends_at_the_budget(figure: Any) -> None:
    for panel in figure().axes[::2]:
        (band,) = panel.patches
        low, high = sorted(
            {y for _, y in band.get_path().transformed(band.get_patch_transform()).vertices}
        )
        assert (low, high) == pytest.approx((0.95 * 40, 40))


def test_without_a_spec_there_is_no_band(figure: Any) -> None:
    axes = figure(lambda folder: (folder / "config.json").unlink()).axes
    assert [panel.get_ylabel() for panel in axes[::2]] == ["layer 1", "layer 2"]
    assert not any(panel.patches for panel in axes)


def test_the_bias_stands_where_lambda_would(figure: Any) -> None:
    def rename(folder: Path) -> None:
        curve = folder / "curve.jsonl"
        curve.write_text(curve.read_text().replace('"lambda"', '"bias"'))

    axes = figure(rename).axes
    assert axes[1].get_yscale() == "linear"
    assert "bias" in axes[1].get_title(loc="left")
