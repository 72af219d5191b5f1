"""Writes the claims' verdicts as Markdown and JSON, with the numbers behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forgetmenot import files
from forgetmenot.report import names
from forgetmenot.report.claims import METHOD, Part, Verdict
from forgetmenot.report.names import Names
from forgetmenot.report.spec import Claim, listed


@dataclass(frozen=True)
class Line:
    """One comparison as text; `verdict` is its own, not the claim's."""

    sides: str
    verdict: str
    effect: str
    interval: str
    by_seed: str
    p: str
    size: str
    reason: str


def name(claim: Claim) -> str:
    """The paper's number of the claim, or else its short name."""
    return claim.number or claim.id


def lines(verdict: Verdict, known: Names) -> list[Line]:
    """A claim's comparisons as text, with variants as they are `known`."""
    return [_line(verdict.claim, part, known) for part in verdict.parts]


def _line(claim: Claim, part: Part, known: Names) -> Line:
    better, worse = (known.variant(variant) for variant in (part.better, part.worse))
    if part.better == part.worse:
        other = claim.worse_metric or ""
        sides = f"{better}, {_at(claim.metric, claim.at)}; against {_at(other, claim.worse_at)}"
    else:
        sides = f"{better} over {worse}"
        if claim.worse_metric or claim.worse_at:
            sides += f" ({_at(claim.worse_metric or '', claim.worse_at)})"
    if claim.trend:
        sides += f", trend over {claim.trend}"
    c = part.comparison
    if c is None:
        return Line(sides, part.verdict, "-", "", "", "-", "-", part.reason)
    p = "-" if part.p_adjusted is None else f"{part.p_adjusted:.2g}"
    shown = [
        # + 0.0: no minus before a zero
        f"{round(100 * x, 1) + 0.0:+.1f} %" if claim.relative else f"{x:+.3g}"
        for x in (c.effect, c.low, c.high, *c.by_seed)
    ]
    interval, size = f"[{shown[1]}, {shown[2]}]", f"{c.samples} x {c.seeds}"
    by_seed = f"seeds: {', '.join(shown[3:])}" if len(c.by_seed) > 1 else ""
    return Line(sides, part.verdict, shown[0], interval, by_seed, p, size, part.reason)


def _at(metric: str, at: Mapping[str, Any]) -> str:
    axes = (f"{key}: {names.value(value)}" for key, value in at.items())
    return ", ".join(filter(None, [names.metric(metric), *axes]))


def markdown(verdicts: Sequence[Verdict], known: Names) -> str:
    """The claims as a Markdown table, one line a comparison, with the method and sources below."""
    rows = ["## Claims", ""]
    if not verdicts:
        return "\n".join([*rows, "This scale tests no claim.", ""])
    rows += [
        "| claim | verdict | comparison | effect [95 %] | p (Holm) | samples x seeds |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    notes = []
    for v in verdicts:
        for number, line in enumerate(lines(v, known)):
            several = len(v.parts) > 1
            claim = f"{name(v.claim)}: {v.claim.text}" if number == 0 else ""
            own = f"{line.sides}: {line.verdict}" if several else line.sides
            shown = f"**{v.verdict}**" if number == 0 else ""
            effect = f"{line.effect} {line.interval}".strip()
            rows.append(f"| {claim} | {shown} | {own} | {effect} | {line.p} | {line.size} |")
            if line.reason:
                notes.append(f"- {name(v.claim)}, {line.sides}: {line.reason}.")
        notes.append(f"- {name(v.claim)}: {source(v.claim, known)}")
    return "\n".join([*rows, "", METHOD, "", *notes]) + "\n"


def source(claim: Claim, known: Names) -> str:
    """Where the statement is made, where it was tested, and what a reader must know."""
    margin = f", margin {claim.margin:g}" if claim.margin else ""
    task = names.task(listed(claim.task)[0])
    metric = names.metric(claim.metric)
    tested = f"Tested on {task}{known.where(claim.study)}: {metric}{margin}."
    return " ".join(filter(None, [claim.source, tested, claim.note]))


def as_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Verdicts as plain data: the claim as configured, the numbers, and the manifests used."""
    return [
        {
            **asdict(v.claim),
            "verdict": v.verdict,
            "parts": [
                {
                    "better": part.better,
                    "worse": part.worse,
                    "verdict": part.verdict,
                    "reason": part.reason,
                    "comparison": None if part.comparison is None else asdict(part.comparison),
                    "p_adjusted": part.p_adjusted,
                    "manifests": [(s.directory / "manifest.json").as_posix() for s in part.sources],
                }
                for part in v.parts
            ],
        }
        for v in verdicts
    ]


def write(verdicts: Sequence[Verdict], known: Names, folder: Path) -> None:
    """Write claims.md and claims.json into `folder`."""
    files.write_text(folder / "claims.md", markdown(verdicts, known))
    files.write_json(folder / "claims.json", as_json(verdicts))
