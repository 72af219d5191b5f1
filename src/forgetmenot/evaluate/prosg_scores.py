"""From the answers of one cell to metrics in long form and one line a scored probe."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from forgetmenot.data.prosg.evalset import Record
from forgetmenot.data.prosg.world import World
from forgetmenot.evaluate.prosg_controls import RIVALS
from forgetmenot.evaluate.prosg_rollout import Answers
from forgetmenot.evaluate.results import Metric, Sample, metric
from forgetmenot.evaluate.retention import Curve
from forgetmenot.evaluate.score import mean_stderr, ratio_stderr

REMEMBERING = ("none", "no-update", "adapter-only", *RIVALS)
"""Controls under which the prompt is there to be captured and retained."""


def cell_metrics(
    world: World,
    records: Sequence[Record],
    answers: Answers,
    distances: list[int],
    at: dict[str, Any],
) -> list[Metric]:
    """Metrics of one number of facts under one control; `n` counts prompts, the independent unit.

    Raw: accuracy, greedy, mrr, nll at each distance and kind. Derived, for `REMEMBERING` only:
    capture, retention, retention_given_capture, aufc, half_distance; left out where undefined
    (accuracy at distance 0 not above chance). filler_ppl: perplexity of the body, the harm.
    """
    nll, stderr = mean_stderr(answers.filler_nll.tolist())
    metrics: list[Metric] = []
    if distances[-1] > 0:
        ppl = math.exp(min(nll, 700.0))  # a diverged model must not overflow the report
        metrics.append(
            metric("filler_ppl", at, ppl, stderr and ppl * stderr, len(answers.filler_nll))
        )
    kinds_BQ = np.array([[probe.kind for probe in record.probes] for record in records])
    for kind in np.unique(kinds_BQ):
        of_kind = {**at, "kind": str(kind)}
        mask_BQ = kinds_BQ == kind
        metrics += _raw(answers, mask_BQ, distances, of_kind)
        if at["control"] in REMEMBERING:
            metrics += _derived(answers, mask_BQ, distances, world.chance(kind), of_kind)
    return metrics


def _raw(
    answers: Answers, mask_BQ: np.ndarray, distances: list[int], at: dict[str, Any]
) -> list[Metric]:
    """Means over the probes of a kind at each distance, with errors clustered by prompt."""
    asked_B = mask_BQ.sum(1)
    prompts = asked_B > 0
    scores = {
        "accuracy": answers.accuracy,
        "greedy": answers.greedy,
        "mrr": 1 / answers.rank,
        "nll": answers.nll,
    }
    metrics = []
    for name, score_BQD in scores.items():
        sum_BD = (score_BQD * mask_BQ[..., None]).sum(1)
        for column, distance in enumerate(distances):
            value, stderr = ratio_stderr(
                sum_BD[prompts, column].tolist(), asked_B[prompts].astype(float).tolist()
            )
            here = {**at, "distance": distance}
            metrics.append(metric(name, here, value, stderr, int(prompts.sum())))
    return metrics


def _derived(
    answers: Answers,
    mask_BQ: np.ndarray,
    distances: list[int],
    chance: float,
    at: dict[str, Any],
) -> list[Metric]:
    right_BQD = answers.accuracy * mask_BQ[..., None]
    asked_B = mask_BQ.sum(1).astype(float)
    again_BD = (right_BQD * right_BQD[..., :1]).sum(1)
    curve = Curve(np.array(distances), right_BQD.sum(1), again_BD, asked_B, chance)
    n = int((asked_B > 0).sum())
    metrics = []
    for name, (values, errors) in curve.estimates().items():
        per_distance = values.ndim == 1
        for column, (value, error) in enumerate(zip(values.flat, errors.flat, strict=True)):
            here = {**at, "distance": distances[column]} if per_distance else at
            if np.isfinite(value):
                spread = float(error) if np.isfinite(error) and n > 1 else None
                metrics.append(metric(name, here, float(value), spread, n))
    return metrics


def cell_samples(
    world: World,
    records: Sequence[Record],
    answers: Answers,
    distances: list[int],
    at: dict[str, Any],
) -> list[Sample]:
    """One line a probe and distance, with the answer given."""
    return [
        {
            "id": f"{record.id}-{number}",
            "cluster": record.id,  # probes of one prompt are not independent
            "at": {**at, "kind": probe.kind, "distance": distance},
            "accuracy": float(answers.accuracy[row, number, column]),
            "greedy": float(answers.greedy[row, number, column]),
            "rank": float(answers.rank[row, number, column]),
            "nll": float(answers.nll[row, number, column]),
            "question": probe.question,
            "answer": probe.answer,
            "given": world.tokens[answers.chosen[row, number, column]],
            "updated": probe.updated,
        }
        for row, record in enumerate(records)
        for number, probe in enumerate(record.probes)
        for column, distance in enumerate(distances)
    ]


def paired_metrics(
    records: Sequence[Record], found: Mapping[str, Answers], distances: list[int], facts: int
) -> list[Metric]:
    """`specificity` at facts, kind and distance: accuracy under "none" less "wrong-update".

    A mean over the same probes, with errors clustered by prompt; empty without both controls.
    """
    if not {"none", "wrong-update"} <= set(found):
        return []
    gain_BQD = found["none"].accuracy - found["wrong-update"].accuracy
    kinds_BQ = np.array([[probe.kind for probe in record.probes] for record in records])
    metrics = []
    for kind in np.unique(kinds_BQ):
        mask_BQ = kinds_BQ == kind
        asked_B = mask_BQ.sum(1)
        prompts = asked_B > 0
        sum_BD = (gain_BQD * mask_BQ[..., None]).sum(1)
        for column, distance in enumerate(distances):
            value, stderr = ratio_stderr(
                sum_BD[prompts, column].tolist(), asked_B[prompts].astype(float).tolist()
            )
            at = {"facts": facts, "kind": str(kind), "distance": distance}
            metrics.append(metric("specificity", at, value, stderr, int(prompts.sum())))
    return metrics


def said(
    world: World, record: Record, answers: Answers, distances: list[int], facts: int
) -> list[Metric]:
    """A worked example: `said`, the answer (a text) to each question of the first prompt.

    Axes: facts, distance, question (with the right answer in brackets).
    """
    return [
        {
            "metric": "said",
            "at": {
                "facts": facts,
                "question": f"{probe.question} [{probe.answer}]",
                "distance": distance,
            },
            "value": world.tokens[answers.chosen[0, number, column]],
            "stderr": None,
            "n": 1,
        }
        for number, probe in enumerate(record.probes)
        for column, distance in enumerate(distances)
    ]
