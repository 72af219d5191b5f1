"""The graph of the jobs as one SVG: data, models, tasks and the report, as the manifests say."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetmenot.report.results import TRAIN, Results

HEADS = ("data", "models", "tasks", "")
X = (30, 280, 550, 830)  # left edge of each column; arcs need room on the left
WIDTHS = (190, 210, 210, 90)
LINE = 26  # height of a row
BOX = 20


@dataclass(frozen=True)
class Node:
    """One box: its column, its text and where it leads on the page (empty: nowhere)."""

    column: int
    text: str
    link: str = ""


def svg(studies: Mapping[str, Any], results: Results, root: Path) -> str:
    """The graph as SVG text. Seeds of a model are one box; so are a task's jobs in one study.

    The manifests of data are looked for below `root`.
    """
    nodes: dict[str, Node] = {}
    edges: set[tuple[str, str]] = set()
    for study, config in studies.items():
        for variant in config["variants"]:
            _add_variant(study, variant, results, nodes, edges, root)
    if nodes:
        nodes["report"] = Node(3, "report")
        edges |= {(name, "report") for name, node in nodes.items() if node.column == 2}
    return _drawn(nodes, sorted(edges))


def _add_variant(
    study: str,
    variant: Mapping[str, Any],
    results: Results,
    nodes: dict[str, Node],
    edges: set[tuple[str, str]],
    root: Path,
) -> None:
    name = variant["name"]
    mine = [
        (task, group) for (s, v, task), group in results.found.items() if (s, v) == (study, name)
    ]
    for task, group in mine:
        first, seeds = group[0], len(group)
        own = f"{study}/{name}" if task == TRAIN else f"{study}:{task}"
        if task == TRAIN:
            count = f", {seeds} seeds" if seeds > 1 else ""
            text = f"{study}: {variant.get('label') or name}{count}"
            nodes[own] = Node(1, text, f"#{first.anchor}")
        else:
            nodes.setdefault(own, Node(2, f"{study}: {task}", f"#{first.anchor}"))
        for key, entry in first.manifest.get("inputs", {}).items():
            path = Path(entry["path"])
            if key == "model":
                edges.add((f"{study}/{name}", own))
            elif key == "init":
                edges.add((f"{study}/{path.parts[-3]}", own))
            else:
                edges.add((_add_data(path, nodes, edges, root), own))


def _add_data(path: Path, nodes: dict[str, Node], edges: set[tuple[str, str]], root: Path) -> str:
    """Add a dataset, and those it was built from where its manifest is here."""
    own = f"data/{path.name}"
    if own not in nodes:
        nodes[own] = Node(0, path.name)
        try:
            inputs = json.loads((root / path / "manifest.json").read_text()).get("inputs", {})
        except (OSError, ValueError):
            inputs = {}
        edges |= {
            (_add_data(Path(entry["path"]), nodes, edges, root), own) for entry in inputs.values()
        }
    return own


def _drawn(nodes: Mapping[str, Node], edges: Sequence[tuple[str, str]]) -> str:
    columns = [[name for name, node in nodes.items() if node.column == n] for n in range(len(X))]
    rows = max((len(column) for column in columns), default=0)
    height = LINE * (rows + 1)
    places = {}
    for column in columns:
        step = (rows / len(column)) if column else 0
        for n, name in enumerate(column):
            places[name] = LINE * (1 + (n + 0.5) * step) - BOX / 2
    lines = [
        _edge(nodes[a].column, places[a], nodes[b].column, places[b])
        for a, b in edges
        if a in nodes and b in nodes
    ]
    boxes = [_box(nodes[name], y) for name, y in places.items()]
    heads = [f'<text x="{x}" y="14" class="head">{h}</text>' for x, h in zip(X, HEADS, strict=True)]
    width = X[-1] + WIDTHS[-1] + 2
    return (
        f'<svg role="img" aria-label="Graph of the jobs" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">{"".join(lines)}{"".join(heads)}{"".join(boxes)}</svg>'
    )


def _edge(column_a: int, y_a: float, column_b: int, y_b: float) -> str:
    a, b = y_a + BOX / 2, y_b + BOX / 2
    if column_a == column_b:  # among data or models: an arc along the left side
        x = X[column_a]
        return f'<path d="M{x} {a:.1f} C{x - 26} {a:.1f} {x - 26} {b:.1f} {x} {b:.1f}"/>'
    left, right = X[column_a] + WIDTHS[column_a], X[column_b]
    middle = (left + right) / 2
    return f'<path d="M{left} {a:.1f} C{middle} {a:.1f} {middle} {b:.1f} {right} {b:.1f}"/>'


def _box(node: Node, y: float) -> str:
    x, width = X[node.column], WIDTHS[node.column]
    fits = width // 7  # characters, about
    text = node.text if len(node.text) <= fits else f"{node.text[: fits - 1]}…"
    shown = (
        f'<rect x="{x}" y="{y:.1f}" width="{width}" height="{BOX}" rx="4"/>'
        f'<text x="{x + 6}" y="{y + 14:.1f}">{html.escape(text)}</text>'
        f"<title>{html.escape(node.text)}</title>"
    )
    return f'<a href="{html.escape(node.link)}">{shown}</a>' if node.link else f"<g>{shown}</g>"
