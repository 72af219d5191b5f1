"""What an update is: how large, and how much it looks like a true gradient, target by target.

ProSG specification, sections 6.8 (faithfulness to the name) and 6.10.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from forgetmenot.data.prosg.batch import left_pad
from forgetmenot.data.prosg.evalset import Record
from forgetmenot.data.prosg.world import World
from forgetmenot.evaluate.results import Metric, metric
from forgetmenot.evaluate.score import mean_stderr

IGNORED = -100
TEACHERS = ("prompt", "response")


def update_metrics(
    model: Any, world: World, records: Sequence[Record], facts: int, batch_size: int,
    gradients: int, device: str,
) -> list[Metric]:  # fmt: skip
    """Means over prompts, at facts, block and target; empty for models without low-rank factors.

    `update_ratio`: |dW| / |W|. `gradient_cosine`, of the first `gradients` prompts and also at
    teacher: cosine of the factors' product and the true gradient of a loss, that of the prompt
    itself or of the answers to all questions asked right after it. Above 0: the update goes down
    that loss, since W' = W - eta G. Not to be called in inference mode.
    """
    if not getattr(getattr(model, "generator", None), "has_factors", False):
        return []
    found: dict[tuple[str, ...], list[float]] = {}
    for start in range(0, len(records), batch_size):
        rows = records[start : start + batch_size]
        batch = _batch(world, rows, device)
        with torch.no_grad():
            prompt = model(batch["prompt_ids"], mask_BL=batch["prompt_mask"]).state
            state = model.commit_prompt(prompt)
            for place, ratio_B in model.update_ratios(state).items():
                found.setdefault(("update_ratio", place), []).extend(ratio_B.tolist())
        wanted = gradients - start
        if wanted > 0:
            for key, cosines in _cosines(model, batch, prompt, state).items():
                found.setdefault(key, []).extend(cosines[:wanted])
    return [_metric(key, values, facts) for key, values in found.items()]


def _metric(key: tuple[str, ...], values: list[float], facts: int) -> Metric:
    name, place, *teacher = key
    block, target = place.split("/")
    at = {"facts": facts, "block": int(block), "target": target}
    at |= {"teacher": teacher[0]} if teacher else {}
    return metric(name, at, *mean_stderr(values), len(values))


def _cosines(
    model: Any, batch: dict[str, torch.Tensor], prompt: Any, state: Any
) -> dict[tuple[str, ...], list[float]]:
    from forgetmenot.prosg.losses import teacher_gradients

    return {
        ("gradient_cosine", f"{n}/{name}", teacher): gradient.cosine(factors[name]).tolist()
        for teacher in TEACHERS
        for n, (block, factors) in enumerate(
            zip(teacher_gradients(model, batch, prompt, teacher), state.update, strict=True)
        )
        for name, gradient in block.items()
    }


def _batch(world: World, records: Sequence[Record], device: str) -> dict[str, torch.Tensor]:
    """Prompts, and the questions right behind them with their answers as labels."""
    prompt_ids, prompt_mask = left_pad([world.encode(r.prompt) for r in records], world.pad)
    rows = [_asked(world, record) for record in records]
    longest = max(len(ids) for ids, _ in rows)
    input_ids = np.full((len(rows), longest), world.pad)
    labels = np.full((len(rows), longest), IGNORED)
    for row, (ids, answers) in enumerate(rows):
        input_ids[row, : len(ids)] = ids
        labels[row, : len(ids)] = answers
    arrays = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "input_ids": input_ids,
        "labels": labels,
    }
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def _asked(world: World, record: Record) -> tuple[np.ndarray, np.ndarray]:
    ids, labels = [], []
    for probe in record.probes:
        ids.append(world.encode(f"{probe.question} {probe.answer} ."))
        labels.append(np.full(len(ids[-1]), IGNORED))
        labels[-1][-3] = ids[-1][-2]  # a probe ends in "answer ."
    return np.concatenate(ids), np.concatenate(labels)
