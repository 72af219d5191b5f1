"""Multi-query associative recall: accuracy by the number of key-value pairs held in memory."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from forgetmenot import model as models
from forgetmenot.data.mqar import load_test
from forgetmenot.evaluate.results import Metric, Sample, metric, write_results
from forgetmenot.evaluate.score import IGNORED, mean_stderr, token_losses
from forgetmenot.mixers.eviction_oracle import needed


@dataclass(frozen=True)
class Options:
    """Which sequences to score."""

    pairs: list[int] | None = None  # numbers of pairs to test; null = all that were built
    samples: int | None = None  # sequences per number of pairs; null = all that were built
    batch_size: int = 32  # sequences per forward pass

    def __post_init__(self) -> None:
        for key in ("samples", "batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: found {value}, allowed: 1 or more")
        if self.pairs is not None and not self.pairs:
            raise ValueError("pairs: found an empty list, allowed: numbers of pairs, or null")


def evaluate(model_dir: Path, data_dir: Path, options: Options, out: Path, device: str) -> None:
    """Write results.json: "accuracy" at {"pairs": P}, and samples.jsonl: one line a sequence.

    Raises UserError when the folder holds no sequences with a requested number of pairs.
    """
    model = models.load(model_dir).to(device)
    metrics, samples = measure(model, data_dir, options, device)
    write_results(out, "recall", metrics, samples)


def measure(
    model: nn.Module, data_dir: Path, options: Options, device: str
) -> tuple[list[Metric], list[Sample]]:
    """Accuracy of each sequence over its queries, then mean and standard error over sequences.

    The queries of one sequence share one memory, so the sequence is the independent sample: `n`
    counts sequences.
    """
    metrics: list[Metric] = []
    samples: list[Sample] = []
    built = json.loads((data_dir / "meta.json").read_text())["pairs"]
    for pairs in built if options.pairs is None else options.pairs:
        at = {"pairs": pairs}
        input_ids, labels = load_test(data_dir, pairs)
        accuracies = sequence_accuracies(
            model,
            torch.from_numpy(input_ids[: options.samples]).to(device),
            torch.from_numpy(labels[: options.samples]).to(device),
            options.batch_size,
        )
        mean, stderr = mean_stderr(accuracies)
        metrics.append(metric("accuracy", at, mean, stderr, len(accuracies)))
        samples += [
            {"id": f"{pairs}-{index}", "at": at, "accuracy": accuracy}
            for index, accuracy in enumerate(accuracies)
        ]
    return metrics, samples


def sequence_accuracies(
    model: nn.Module, input_ids_NL: torch.Tensor, labels_NL: torch.Tensor, batch_size: int
) -> list[float]:
    """Share of correctly predicted labels of each sequence (labels of -100 are no query)."""
    accuracies: list[float] = []
    for start in range(0, len(input_ids_NL), batch_size):
        rows = slice(start, start + batch_size)
        with needed(model, asked_later(input_ids_NL[rows], labels_NL[rows])):
            _, hit_BL = token_losses(model, input_ids_NL[rows], labels_NL[rows])
        queries_B = (labels_NL[rows] != IGNORED).sum(1)
        accuracies += (hit_BL.sum(1).double() / queries_B).tolist()
    return accuracies


def asked_later(input_ids_BL: torch.Tensor, labels_BL: torch.Tensor) -> torch.Tensor:
    """Which tokens are a key, or the value after it, that a later label asks for: bool [B, L].

    A label other than -100 asks for itself as the token after an earlier copy of its input.
    """
    key_BL, value_BL = input_ids_BL[:, :-1], input_ids_BL[:, 1:]
    asked_BL = labels_BL != IGNORED
    needed_BL = torch.zeros_like(asked_BL)
    for t in asked_BL.any(0).nonzero()[:, 0].tolist():
        pair_BL = (key_BL == input_ids_BL[:, t, None]) & (value_BL == labels_BL[:, t, None])
        pair_BL = pair_BL[:, :t] & asked_BL[:, t, None]
        needed_BL[:, :t] |= pair_BL
        needed_BL[:, 1 : t + 1] |= pair_BL
    return needed_BL
