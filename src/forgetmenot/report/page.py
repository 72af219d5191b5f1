"""The report's page: one HTML file that opens offline, with every image inside it."""

import base64
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forgetmenot.report import claims, dag, glossary, html, names, verdicts
from forgetmenot.report.claims import Verdict
from forgetmenot.report.figures.style import Drawn
from forgetmenot.report.names import Names
from forgetmenot.report.results import TRAIN, Result, Results
from forgetmenot.report.tables import Grid


def render(
    spec: Mapping[str, Any],
    papers: Mapping[str, Any],
    results: Results,
    grids: Sequence[Grid],
    figures: Sequence[Drawn],
    judged: Sequence[Verdict],
    out: Path,
    root: Path,
) -> str:
    """Render the page of a report that will lie in `out`: links to manifests start from there.

    `root` is the folder that the paths in the manifests start from.
    """
    known = names.of(spec)
    values = {
        "spec": spec,
        "papers": papers,
        "grids": grids,
        "figures": figures,
        "verdicts": [(v, verdicts.lines(v, known)) for v in judged],
        "claim_name": verdicts.name,
        "claim_source": verdicts.source,
        "known": known,
        "task_name": names.task,
        "claim_method": claims.METHOD,
        "data_uri": data_uri,
        "dag": dag.svg(spec["studies"], results, root),
        "training": [_training(n, study, results, known) for n, study in spec["studies"].items()],
        "environment": _environment(results),
        "limits": _limits(spec, papers),
        "missing": results.missing,
        "runs": _runs(results, out, known),
    }
    template = html.environment().get_template("page")
    # Rendered once to see which terms it uses, and again with these explained.
    terms = glossary.occurring(template.render(**values, terms=[]))
    text: str = template.render(**values, terms=terms)
    return text


def data_uri(png: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _training(
    name: str, study: Mapping[str, Any], results: Results, known: Names
) -> dict[str, Any]:
    lines = [_effort(name, study, results)]
    lines += [f"Data: {_plain(dataset)}" for dataset in study.get("data") or []]
    if study.get("train"):
        lines.append(f"Training: {_plain(study['train'])}")
    for variant, changes in (study.get("train_overrides") or {}).items():
        lines.append(f"Training of {known.variant(variant)} differs: {_plain(changes)}")
    for variant, source in (study.get("released") or {}).items():
        lines.append(f"Weights of {known.variant(variant)}, trained by others: {_plain(source)}")
    if study.get("size"):
        lines.append(f"Size: {study['size']}")
    tasks = "; ".join(map(names.task, study["tasks"]))
    lines.append(f"Seeds: {_plain(study['seeds'])}. Tasks: {tasks}")
    lines += [f"Deviation: {deviation}" for deviation in study.get("deviations") or []]
    variants = [{"label": "", "description": "", **variant} for variant in study["variants"]]
    return {"title": study.get("title") or name, "lines": lines, "variants": variants}


def _effort(name: str, study: Mapping[str, Any], results: Results) -> str:
    """How many models were trained here, with how many tokens, for how long, on what."""
    trained = [
        result
        for variant in study["variants"]
        for result in results.get(name, variant["name"], TRAIN)
        if not result.untrained
    ]
    if not trained:
        return "Nothing was trained here."
    tokens = [m["value"] for r in trained for m in r.metrics if m["metric"] == "tokens"]
    minutes = [float(result.manifest.get("wall_seconds") or 0) / 60 for result in trained]
    devices = sorted({str(result.manifest.get("device", "unknown")) for result in trained})
    return (
        f"{len(trained)} models trained: {statistics.median(tokens) / 1e6:.3g} million tokens each "
        f"(median), {statistics.median(minutes):.1f} minutes each (median), {sum(minutes):.0f} "
        f"minutes in all, on {', '.join(devices)}"
    )


def _plain(value: Any) -> str:
    """Nested configuration as one readable line; what is null is left out."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(v)}" for key, v in value.items() if v is not None)
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return names.value(value)


def _environment(results: Results) -> list[str]:
    """Every commit, device, platform and library version that a result was made with."""
    manifests = [result.manifest for result in results.all()]
    lines = []
    for key in ("device", "platform"):
        found = sorted({str(manifest.get(key, "unknown")) for manifest in manifests})
        lines.append(f"{key}: {', '.join(found) or 'unknown'}")
    commits = sorted({_commit(manifest) for manifest in manifests})
    lines.append(f"git commit: {', '.join(commits) or 'unknown'}")
    versions = sorted({f"{k} {v}" for m in manifests for k, v in (m.get("versions") or {}).items()})
    return [*lines, f"versions: {', '.join(versions) or 'unknown'}"]


def _commit(manifest: Mapping[str, Any]) -> str:
    git = manifest.get("git") or {}
    return str(git.get("commit", "unknown"))[:10] + (" (modified)" if git.get("dirty") else "")


def _limits(spec: Mapping[str, Any], papers: Mapping[str, Any]) -> list[str]:
    lines = list(spec.get("deviations") or [])
    single = [s.get("title") or n for n, s in spec["studies"].items() if len(s["seeds"]) == 1]
    if single:
        lines.append(
            f"How much another training run would differ: one seed in {', '.join(single)}."
        )
    for name in spec["papers"]:
        lines += papers.get(name, {}).get("limits") or [f"reports/papers/{name}.yaml is missing."]
    return lines


def _runs(results: Results, out: Path, known: Names) -> list[dict[str, Any]]:
    """One entry a model and task: its seeds, each with its manifest, and what they were asked."""
    groups: dict[str, list[Result]] = {}
    for result in results.all():
        groups.setdefault(result.anchor, []).append(result)
    return [
        {
            "anchor": anchor,
            "name": f"{known.variant(group[0].variant)}: {names.task(group[0].task)}",
            "study": known.study(group[0].study),
            "folder": f"{group[0].study}/{group[0].variant}",
            "asked": json.dumps(group[0].manifest.get("spec"), indent=1, sort_keys=True),
            "inputs": [
                f"{name}: {entry.get('id', '')[:16]}"
                for name, entry in sorted(group[0].manifest.get("inputs", {}).items())
            ],
            "seeds": [_run(result, out) for result in group],
        }
        for anchor, group in groups.items()
    ]


def _run(result: Result, out: Path) -> dict[str, Any]:
    manifest = result.manifest
    seconds = manifest.get("wall_seconds")
    return {
        "seed": result.seed,
        "seconds": "" if seconds is None else f"{seconds:.1f}",
        "finished": str(manifest.get("finished", ""))[:16].replace("T", " "),
        "device": manifest.get("device", "unknown"),
        "commit": _commit(manifest),
        "code": str(manifest.get("code", ""))[:10],
        "manifest": Path(os.path.relpath(result.directory / "manifest.json", out)).as_posix(),
    }
