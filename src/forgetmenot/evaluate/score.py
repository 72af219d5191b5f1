"""Scores and their standard errors, shared by all evaluators."""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

IGNORED = -100  # the label of a position that is not scored


def token_losses(
    model: nn.Module, input_ids_BL: Tensor, labels_BL: Tensor
) -> tuple[Tensor, Tensor]:
    """Per-token loss and whether the label is the model's first choice.

    `input_ids_BL`, `labels_BL`: int64 [B, L]; labels[t] is the target of logits[t], -100 = not
    scored. Returns (loss_BL float32 in nats, 0 where not scored; hit_BL bool, False where not
    scored). The model starts from its empty state.
    """
    with torch.inference_mode():
        return label_losses(model(input_ids_BL, need_state=False).logits_BLV, labels_BL)


def label_losses(logits_BLV: Tensor, labels_BL: Tensor) -> tuple[Tensor, Tensor]:
    """As `token_losses`, from logits [B, L, V] that are there already."""
    logits_BLV = logits_BLV.float()
    loss_N = functional.cross_entropy(
        logits_BLV.flatten(0, 1), labels_BL.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return loss_N.view_as(labels_BL), logits_BLV.argmax(-1) == labels_BL


def mean_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of independent samples and its standard error (None for a single sample)."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, math.sqrt(variance / n)


def ratio_stderr(numerators: Sequence[float], sizes: Sequence[float]) -> tuple[float, float | None]:
    """sum(numerators) / sum(sizes) over independent documents, with its standard error.

    Documents differ in size, so tokens are not the independent unit: the error is the usual
    linearised (delta method) error of a ratio estimator over documents.
    """
    total = math.fsum(sizes)
    ratio = math.fsum(numerators) / total
    n = len(sizes)
    if n < 2:
        return ratio, None
    residual = math.fsum((a - ratio * b) ** 2 for a, b in zip(numerators, sizes, strict=True))
    return ratio, math.sqrt(residual * n / (n - 1)) / total


def contains_share(output: str, answers: Sequence[str]) -> float:
    """Share of `answers` that occur in `output`, ignoring case (RULER's string match).

    As in RULER, control characters of the output are read as line breaks first.
    """
    text = re.sub(r"[\x00-\x1f]", "\n", output).lower()
    return sum(answer.lower() in text for answer in answers) / len(answers)


def contains(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval `process_results` of a task whose documents carry `outputs`, a list of answers."""
    return {"contains": contains_share(results[0], doc["outputs"])}
