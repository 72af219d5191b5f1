"""Harm of what a prompt left: how well general text is read after it, with the update and without.

ProSG specification, section 6.8 (metrics).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from forgetmenot.data.prosg.evalset import Record
from forgetmenot.data.prosg.world import World
from forgetmenot.data.sampling import sample_rng
from forgetmenot.errors import UserError
from forgetmenot.evaluate.prosg_rollout import CHUNK
from forgetmenot.evaluate.results import Metric, Sample, metric
from forgetmenot.evaluate.score import mean_stderr


def general_nll(
    model: Any, world: World, records: Sequence[Record], state: Any, tokens: int, device: str
) -> list[float]:
    """Nats a token of a held-out text of `tokens` tokens behind each prompt.

    Real prose where the world has it, else sentences of the filler grammar; a function of the
    record's seed. The first token of each pass is not scored. `state` is used up. Raises UserError
    when the world has too little text.
    """
    text = world.prose or world.filler
    most = (len(text.region(held=True)) - 100) // 2  # room for whole sentences and other places
    if tokens > most:
        raise UserError(f"general_tokens: found {tokens}; allowed with this dataset: up to {most}")
    rows = [
        text.segments(sample_rng(0, "prosg_pf general text", record.seed), [tokens], held=True)[0]
        for record in records
    ]
    ids_BL = torch.stack([torch.from_numpy(row) for row in rows]).to(device)
    nll_B = torch.zeros(len(records), device=device)
    scored = 0
    for chunk_BL in ids_BL.split(CHUNK, 1):
        out = model(chunk_BL, state=state)
        state = out.state
        logits_BVL = out.logits_BLV[:, :-1].float().transpose(1, 2)
        nll_B += functional.cross_entropy(logits_BVL, chunk_BL[:, 1:], reduction="none").sum(1)
        scored += chunk_BL.shape[1] - 1
    found: list[float] = (nll_B / max(scored, 1)).tolist()
    return found


def harm_metrics(facts: int, nll: dict[str, list[float]]) -> list[Metric]:
    """`general_nll` and `general_ppl` of every control; `harm_ppl_ratio` to that without update.

    nll: by control, one number a prompt, in the same order. The ratio's error is that of the
    paired differences.
    """
    metrics = []
    for control, values in nll.items():
        at = {"facts": facts, "control": control}
        mean, stderr = mean_stderr(values)
        metrics.append(metric("general_nll", at, mean, stderr, len(values)))
        metrics.append(_exponential("general_ppl", at, values))
        if control != "no-update" and "no-update" in nll:
            pairs = zip(values, nll["no-update"], strict=True)
            metrics.append(_exponential("harm_ppl_ratio", at, [a - b for a, b in pairs]))
    return metrics


def _exponential(name: str, at: dict[str, Any], logs: list[float]) -> Metric:
    """Exp of a mean, with its error to first order."""
    mean, stderr = mean_stderr(logs)
    value = math.exp(min(mean, 700.0))  # a diverged model must not overflow the report
    return metric(name, at, value, stderr and value * stderr, len(logs))


def harm_samples(
    facts: int, records: Sequence[Record], nll: dict[str, list[float]]
) -> list[Sample]:
    """One line a prompt and control."""
    return [
        {
            "id": f"{record.id}-general",
            "cluster": record.id,
            "at": {"facts": facts, "control": control},
            "general_nll": value,
        }
        for control, values in nll.items()
        for record, value in zip(records, values, strict=True)
    ]
