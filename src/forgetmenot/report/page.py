"""The report's page: one HTML file that opens offline, with every image inside it."""

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forgetmenot.report import claims, render, template
from forgetmenot.report.claims import Verdict
from forgetmenot.report.figures.style import Drawn
from forgetmenot.report.results import Result, Results
from forgetmenot.report.tables import Grid


def html(
    spec: Mapping[str, Any],
    papers: Mapping[str, Any],
    results: Results,
    grids: Sequence[Grid],
    figures: Sequence[Drawn],
    verdicts: Sequence[Verdict],
    out: Path,
) -> str:
    """Render the page of a report that will lie in `out`: links to manifests start from there."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template.PAGE).render(
        spec=spec,
        style=template.STYLE,
        papers=papers,
        grids=grids,
        figures=figures,
        verdicts=verdicts,
        claim_numbers=claims.numbers,
        claim_method=claims.METHOD,
        number=render.number,
        data_uri=data_uri,
        training=[_training(name, study) for name, study in spec["studies"].items()],
        environment=_environment(results),
        limits=_limits(spec, papers),
        missing=results.missing,
        runs=_runs(results, out),
    )


def data_uri(png: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _training(name: str, study: Mapping[str, Any]) -> dict[str, Any]:
    lines = [f"Data: {_plain(dataset)}" for dataset in study.get("data") or []]
    if study.get("train"):
        lines.append(f"Training: {_plain(study['train'])}")
    for variant, source in (study.get("released") or {}).items():
        lines.append(f"Weights of {variant}, trained by others: {_plain(source)}")
    if study.get("size"):
        lines.append(f"Size: {study['size']}")
    lines.append(f"Seeds: {_plain(study['seeds'])}. Tasks: {_plain(study['tasks'])}")
    lines += [f"Deviation: {deviation}" for deviation in study.get("deviations") or []]
    variants = [{"label": "", "description": "", **variant} for variant in study["variants"]]
    return {"title": study.get("title") or name, "lines": lines, "variants": variants}


def _plain(value: Any) -> str:
    """Nested configuration as one readable line; what is null is left out."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(v)}" for key, v in value.items() if v is not None)
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value)


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


def _runs(results: Results, out: Path) -> list[dict[str, Any]]:
    """One line a result; the first seed of a variant and task carries the anchor."""
    lines, seen = [], set()
    for result in results.all():
        manifest = result.manifest
        lines.append(
            {
                "anchor": "" if result.anchor in seen else result.anchor,
                "name": f"{result.study}/{result.variant}/{result.task}",
                "seed": result.seed,
                "seconds": _seconds(manifest),
                "finished": str(manifest.get("finished", ""))[:16].replace("T", " "),
                "device": manifest.get("device", "unknown"),
                "commit": _commit(manifest),
                "code": str(manifest.get("code", ""))[:10],
                "manifest": link(result, out),
            }
        )
        seen.add(result.anchor)
    return lines


def _seconds(manifest: Mapping[str, Any]) -> str:
    seconds = manifest.get("wall_seconds")
    return "" if seconds is None else f"{seconds:.1f}"


def link(result: Result, out: Path) -> str:
    """Relative address of a result's manifest from the report's folder."""
    return Path(os.path.relpath(result.directory / "manifest.json", out)).as_posix()
