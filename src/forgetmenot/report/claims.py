"""Tests each claim on the results: supported, contradicted or undecided, with its effect."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from forgetmenot import files
from forgetmenot.report.results import Result, Results, matches
from forgetmenot.report.spec import Claim
from forgetmenot.report.stats import Comparison, holm, paired, unpaired

ALPHA = 0.05
METHOD = (
    "Effect: the difference that the claim favours, with a 95 % interval from a bootstrap that "
    "draws seeds and sample ids, the same for both sides. Verdict: two-sided bootstrap p-value "
    "against the margin, Holm-adjusted within a paper, at 5 %; intervals are not adjusted. Where a "
    "metric is no mean over samples, a normal test on standard errors takes the bootstrap's "
    "place. A claim of equality is supported if the whole interval lies within the margin. With "
    "one seed a verdict is about these trained models, not about what training again would give; "
    "with few seeds intervals are too narrow."
)


@dataclass
class Verdict:
    """The outcome of one claim; `p_adjusted` is Holm's, within the claim's paper."""

    claim: Claim
    verdict: str = "no result"
    reason: str = ""
    comparison: Comparison | None = None
    p_adjusted: float | None = None
    sources: list[Result] = field(default_factory=list)


def judge(claims: Sequence[Claim], results: Results) -> list[Verdict]:
    """Test every claim; those that could be measured share Holm's correction within their paper."""
    verdicts = [_measure(claim, results) for claim in claims]
    for paper in {claim.paper for claim in claims}:
        family = [v for v in verdicts if v.claim.paper == paper and v.claim.kind == "greater"]
        measured = [(v, v.comparison.p) for v in family if v.comparison]
        adjusted = holm([p for _, p in measured])
        for (verdict, _), p in zip(measured, adjusted, strict=True):
            verdict.p_adjusted = p
    for verdict in verdicts:
        if verdict.comparison is not None:
            _decide(verdict, verdict.comparison, results)
    return verdicts


def _measure(claim: Claim, results: Results) -> Verdict:
    """Compare the two sides: paired over samples, or by ready numbers where there are none."""
    verdict = Verdict(claim)
    better = results.get(claim.study, claim.better, claim.task)
    worse = results.get(claim.study, claim.worse, claim.task)
    for variant, group in ((claim.better, better), (claim.worse, worse)):
        if not group:
            verdict.reason = f"{claim.study}/{variant}/{claim.task} has no result"
    seeds = sorted({r.seed for r in better} & {r.seed for r in worse})
    left = [result for result in better if result.seed in seeds]
    right = [result for result in worse if result.seed in seeds]
    verdict.sources = [*left, *(result for result in right if result not in left)]
    if not seeds:
        return verdict
    sides = [
        (left, claim.metric, claim.at),
        (right, claim.worse_metric or claim.metric, {**claim.at, **claim.worse_at}),
    ]
    if not claim.higher_is_better:
        sides.reverse()
    null = claim.margin if claim.kind == "greater" else 0.0
    scores = [[result.scores(metric, at) for result in group] for group, metric, at in sides]
    ready = [_ready(*side) for side in sides]
    if all(all(side) for side in scores):
        try:
            verdict.comparison = paired(scores[0], scores[1], null)
        except ValueError as error:
            verdict.reason = str(error)
    elif ready[0] and ready[1]:
        verdict.comparison = unpaired(ready[0][:2], ready[1][:2], null, ready[0][2])
    else:
        verdict.reason = "a side has neither samples nor numbers with standard errors at these axes"
    return verdict


def _ready(
    group: Sequence[Result], metric: str, at: Mapping[str, Any]
) -> tuple[list[float], list[float], int] | None:
    """Value and standard error of each seed, means over the entries at `at`, and how many samples.

    None if a seed has no such entry. Entries of different axis values have samples of their own.
    """
    values, errors, n = [], [], 0
    for result in group:
        entries = [
            entry
            for entry in result.metrics
            if entry["metric"] == metric
            and matches(entry.get("at", {}), at)
            and None not in (entry["value"], entry.get("stderr"))
        ]
        if not entries:
            return None
        values.append(statistics.fmean(entry["value"] for entry in entries))
        errors.append(math.hypot(*(entry["stderr"] for entry in entries)) / len(entries))
        n = sum(entry["n"] for entry in entries)
    return values, errors, n


def _decide(verdict: Verdict, comparison: Comparison, results: Results) -> None:
    claim = verdict.claim
    if claim.kind == "equal":
        # Equality is an interval wholly inside the margin; no p-value, so no share in Holm's.
        if -claim.margin < comparison.low and comparison.high < claim.margin:
            verdict.verdict = "supported"
        elif comparison.low > claim.margin or comparison.high < -claim.margin:
            verdict.verdict = "contradicted"
        else:
            verdict.verdict = "undecided"
        return
    verdict.reason = _unlearned(claim, results)
    if verdict.reason or verdict.p_adjusted is None or verdict.p_adjusted >= ALPHA:
        verdict.verdict = "undecided"
    else:
        verdict.verdict = "supported" if comparison.effect > claim.margin else "contradicted"


def _unlearned(claim: Claim, results: Results) -> str:
    """Why the task says nothing about forgetting: its control did not learn it. Empty if it did."""
    if claim.control is None:
        return ""
    group = results.get(claim.study, claim.control, claim.task)
    entries = [
        entry["value"]
        for result in group
        for entry in result.metrics
        if entry["metric"] == claim.metric
        and matches(entry.get("at", {}), claim.at)
        and entry["value"] is not None
    ]
    reached = sum(entries) / len(entries) if entries else None
    if reached is not None and reached >= claim.control_above:
        return ""
    had = "has no result" if reached is None else f"reached {reached:.3g}"
    return (
        f"the control {claim.control} {had} (needed: {claim.control_above:g}), so the task was "
        "not learned and a difference says nothing about forgetting"
    )


def markdown(verdicts: Sequence[Verdict]) -> str:
    """A Markdown table of the verdicts, with the method and the notes below."""
    lines = [
        "## Claims",
        "",
        "| claim | verdict | effect [95 %] | p (Holm) | samples x seeds |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for v in verdicts:
        effect, p, size = numbers(v)
        lines.append(f"| {v.claim.id}: {v.claim.text} | {v.verdict} | {effect} | {p} | {size} |")
    notes = [
        f"- {v.claim.id}: {text}"
        for v in verdicts
        for text in (f"source: {v.claim.source}", v.reason, v.claim.note)
        if text
    ]
    return "\n".join([*lines, "", METHOD, "", *notes]) + "\n"


def numbers(verdict: Verdict) -> tuple[str, str, str]:
    """Effect with interval, adjusted p-value, and sample and seed counts, as text."""
    c = verdict.comparison
    if c is None:
        return "-", "-", "-"
    p = "-" if verdict.p_adjusted is None else f"{verdict.p_adjusted:.2g}"
    return f"{c.effect:+.3f} [{c.low:+.3f}, {c.high:+.3f}]", p, f"{c.samples} x {c.seeds}"


def as_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Verdicts as plain data: the claim as configured, the numbers, and the manifests used."""
    return [
        {
            **asdict(v.claim),
            "verdict": v.verdict,
            "reason": v.reason,
            "comparison": None if v.comparison is None else asdict(v.comparison),
            "p_adjusted": v.p_adjusted,
            "manifests": [(s.directory / "manifest.json").as_posix() for s in v.sources],
        }
        for v in verdicts
    ]


def write(verdicts: Sequence[Verdict], folder: Path) -> None:
    """Write claims.md and claims.json into `folder`."""
    files.write_text(folder / "claims.md", markdown(verdicts))
    files.write_json(folder / "claims.json", as_json(verdicts))
