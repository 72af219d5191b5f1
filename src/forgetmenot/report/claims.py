"""Tests each claim on the results: supported, contradicted, undecided or not run."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from forgetmenot.report import names, places
from forgetmenot.report.names import Names
from forgetmenot.report.results import TRAIN, Result, Results, pooled
from forgetmenot.report.spec import Claim, listed
from forgetmenot.report.stats import Comparison, Contrast, holm, paired, slope, unpaired

ALPHA = 0.05
NOT_RUN = "not run"
COMPUTED = ("parameters", "state_bytes", "flops_per_token")  # exact: from the code of the models
METHOD = (
    "A claim is a set of comparisons, one for each pair of models that it names. Effect: the "
    "difference that the claim favours, with a 95 % interval from a bootstrap that draws seeds and "
    "sample ids, the same for both sides, and the difference in each seed where there are several. "
    "Verdict of a comparison: two-sided bootstrap p-value "
    "against the margin, Holm-adjusted over all comparisons of a paper, at 5 %; intervals are not "
    "adjusted. A claim is supported if all its comparisons are, contradicted if one is, not run if "
    "none could be measured, else undecided. Where a metric is no mean over samples, a normal test "
    "on standard errors takes the bootstrap's place; computed numbers are exact. A comparison for "
    "equality is supported if the whole interval lies within the margin. With one seed a verdict "
    "is about these trained models, not about what training again would give; with few seeds "
    "intervals are too narrow."
)


@dataclass
class Part:
    """One comparison of a claim; `p_adjusted` is Holm's, within the claim's paper."""

    better: str
    worse: str
    verdict: str = NOT_RUN
    reason: str = ""
    comparison: Comparison | None = None
    p_adjusted: float | None = None
    sources: list[Result] = field(default_factory=list)


@dataclass
class Verdict:
    """The outcome of one claim and of its comparisons."""

    claim: Claim
    parts: list[Part]

    @property
    def verdict(self) -> str:
        """supported, contradicted, undecided or not run."""
        found = {part.verdict for part in self.parts}
        if len(found) == 1:
            return found.pop()
        return "contradicted" if "contradicted" in found else "undecided"


def judge(claims: Sequence[Claim], results: Results, known: Names) -> list[Verdict]:
    """Test every claim; all measured comparisons of a paper share Holm's correction.

    Reasons call variants and studies as they are `known`.
    """
    chosen = [_with_task(claim, results) for claim in claims]
    verdicts = [
        Verdict(claim, [_measure(claim, *pair, results, known) for pair in claim.pairs])
        for claim in chosen
    ]
    for paper in {claim.paper for claim in claims}:
        family = [
            part
            for verdict in verdicts
            if (verdict.claim.paper, verdict.claim.kind) == (paper, "greater")
            for part in verdict.parts
        ]
        measured = [(part, part.comparison.p) for part in family if part.comparison]
        adjusted = holm([p for _, p in measured])
        for (part, _), p in zip(measured, adjusted, strict=True):
            part.p_adjusted = p
    for verdict in verdicts:
        for part in verdict.parts:
            if part.comparison is not None:
                _decide(verdict.claim, part, part.comparison, results, known)
    return verdicts


def _with_task(claim: Claim, results: Results) -> Claim:
    """The claim on the first of its tasks that a model of its study was scored on."""
    tasks = listed(claim.task)
    scored = [t for t in tasks if any(results.get(claim.study, v, t) for v in claim.variants)]
    return replace(claim, task=(scored or tasks)[0])


def _measure(claim: Claim, better: str, worse: str, results: Results, known: Names) -> Part:
    """Compare the two sides: paired over samples, or by ready numbers where there are none."""
    part, task = Part(better, worse), listed(claim.task)[0]
    groups = [results.get(claim.study, variant, task) for variant in (better, worse)]
    for variant, group in zip((better, worse), groups, strict=True):
        if not group:
            part.reason = (
                f"{known.variant(variant)} has no result of {names.task(task)}"
                f"{known.where(claim.study)}"
            )
    seeds = {r.seed for r in groups[0]} & {r.seed for r in groups[1]}
    left, right = ([result for result in group if result.seed in seeds] for group in groups)
    part.sources = [*left, *(result for result in right if result not in left)]
    if not seeds:
        part.reason = part.reason or "the two sides have no seed in common"
        return part
    try:
        part.comparison = _compare(claim, left, right, results, known)
    except ValueError as error:
        part.reason = str(error)
    return part


def _compare(
    claim: Claim,
    left: Sequence[Result],
    right: Sequence[Result],
    results: Results,
    known: Names,
) -> Comparison:
    """Raises ValueError, with the reason, where the results do not allow the comparison."""
    at = places.resolve(claim.at, claim, left, results, known)
    other_at = places.resolve({**claim.at, **claim.worse_at}, claim, right, results, known)
    wanted = [
        (left, claim.metric, at),
        (right, claim.worse_metric or claim.metric, other_at),
    ]
    sign = 1.0 if claim.higher_is_better else -1.0
    contrast = Contrast((sign, -sign), claim.relative)
    if claim.trend:
        steps = places.common(claim.trend, wanted)
        weights = sign * slope([np.log2(1 + float(step)) for step in steps])
        contrast = Contrast((*weights, *-weights))
        wanted = [
            (group, metric, {**there, claim.trend: step})
            for group, metric, there in wanted
            for step in steps
        ]
    null = claim.margin if claim.kind == "greater" else 0.0
    scores = [[result.scores(metric, there) for result in group] for group, metric, there in wanted]
    if all(all(side) for side in scores):
        return paired(scores, null, contrast)
    computed = claim.task == TRAIN and claim.metric in COMPUTED
    ready = [side for place in wanted if (side := pooled(*place, computed)) is not None]
    if len(ready) < len(wanted):
        raise ValueError(
            f"a side has neither samples nor {names.metric(claim.metric)} with standard errors at "
            "these axes"
        )
    values, errors, counts = zip(*ready, strict=True)
    return unpaired(values, errors, null, counts[0] // len(left), contrast)


def _decide(
    claim: Claim, part: Part, comparison: Comparison, results: Results, known: Names
) -> None:
    part.reason = (
        _unlearned(claim, results, known)
        or _never_learned(claim, part, results, known)
        or _unmatched(claim, part, results)
    )
    part.verdict = "undecided"
    if part.reason:
        return
    if claim.kind == "equal":
        # Equality is an interval wholly inside the margin; no p-value, so no share in Holm's.
        if -claim.margin < comparison.low and comparison.high < claim.margin:
            part.verdict = "supported"
        elif comparison.low > claim.margin or comparison.high < -claim.margin:
            part.verdict = "contradicted"
    elif part.p_adjusted is not None and part.p_adjusted < ALPHA:
        part.verdict = "supported" if comparison.effect > claim.margin else "contradicted"


def _unlearned(claim: Claim, results: Results, known: Names) -> str:
    """Why the task says nothing about forgetting: its control did not learn it. Empty if it did.

    A control is asked where it can show that: wherever its own numbers are, not beyond a window.
    """
    if claim.control is None:
        return ""
    group = results.get(claim.study, claim.control, listed(claim.task)[0])
    at = {key: value for key, value in claim.at.items() if not places.is_relative(value)}
    found = pooled(group, claim.metric, at, computed=True) if group else None
    reached = None if found is None else sum(found[0]) / len(found[0])
    if reached is not None and reached >= claim.control_above:
        return ""
    had = "has no result" if reached is None else f"reached {reached:.3g}"
    return (
        f"the control {known.variant(claim.control)} {had} (needed: {claim.control_above:g}), so "
        "the task was not learned and a difference says nothing about forgetting"
    )


def _never_learned(claim: Claim, part: Part, results: Results, known: Names) -> str:
    """Why the other side's failure says nothing about forgetting. Empty if it learned the task."""
    if claim.worse_above is None:
        return ""
    group = results.get(claim.study, part.worse, listed(claim.task)[0])
    values = [
        float(entry["value"])
        for result in group
        for entry in result.metrics
        if entry["metric"] == claim.metric and isinstance(entry["value"], int | float)
    ]
    best = max(values, default=0.0)
    if best >= claim.worse_above:
        return ""
    return (
        f"{known.variant(part.worse)} reached {best:.3g} at best anywhere (needed: "
        f"{claim.worse_above:g}): it did not learn the task, so the difference "
        "says nothing about forgetting"
    )


def _unmatched(claim: Claim, part: Part, results: Results) -> str:
    """Why the sides are not comparable: they differ in what must be equal. Empty if they do not."""
    if not claim.matched:
        return ""
    groups = [
        results.get(claim.study, name, listed(claim.task)[0]) for name in (part.better, part.worse)
    ]
    found = [pooled(group, claim.matched, claim.at, computed=True) for group in groups]
    means = [None if side is None else sum(side[0]) / len(side[0]) for side in found]
    if None in means:
        return f"no {names.metric(claim.matched)} to match the two sides by"
    left, right = (mean for mean in means if mean is not None)
    if abs(left - right) <= claim.matched_within:
        return ""
    return (
        f"{names.metric(claim.matched)} differs: {left:.3g} and {right:.3g} (at most "
        f"{claim.matched_within:g} apart is needed)"
    )
