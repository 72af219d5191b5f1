"""Loss by position in the context: how much a model still gains from what lies further back."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from forgetmenot import model as models
from forgetmenot.data.tokenizer_folder import read_tokenizer_meta
from forgetmenot.data.tokens import open_shards
from forgetmenot.errors import UserError
from forgetmenot.evaluate.results import Metric, Sample, metric, require_vocabulary, write_results
from forgetmenot.evaluate.score import mean_stderr, token_losses


@dataclass(frozen=True)
class Options:
    """Which windows to score, and how to group their positions."""

    length: int  # tokens of a window
    bucket: int  # positions averaged together; divides the length
    windows: int | None = None  # windows to score, spread over the held-out tokens; null = all
    batch_size: int = 8  # windows per forward pass

    def __post_init__(self) -> None:
        for key in ("length", "bucket", "windows", "batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: found {value}, allowed: 1 or more")
        if self.length % self.bucket:
            raise ValueError(
                f"bucket: found {self.bucket}, allowed: divisors of length {self.length}"
            )


def evaluate(model_dir: Path, data_dir: Path, options: Options, out: Path, device: str) -> None:
    """Write results.json: "loss" (nats per token) and "perplexity" at {"position": p}, where p is
    the last position of a bucket (1 = the first token of a window predicted); samples.jsonl has
    one line a window and bucket.

    `data_dir` is a built token folder. Raises UserError if no window fits its held-out tokens.
    """
    model = models.load(model_dir).to(device)
    require_vocabulary(model, read_tokenizer_meta(data_dir)["vocab_size"], data_dir)
    metrics, samples = measure(model, data_dir, options, device)
    write_results(out, "position_perplexity", metrics, samples)


def measure(
    model: nn.Module, data_dir: Path, options: Options, device: str
) -> tuple[list[Metric], list[Sample]]:
    """Mean loss of each bucket, with its standard error over windows (the independent samples)."""
    window_NL = windows(data_dir, options)
    losses = []
    for start in range(0, len(window_NL), options.batch_size):
        rows_BL = torch.from_numpy(window_NL[start : start + options.batch_size]).to(device)
        loss_BL, _ = token_losses(model, rows_BL[:, :-1], rows_BL[:, 1:])
        losses.append(loss_BL.double().view(len(loss_BL), -1, options.bucket).mean(2).cpu())
    metrics: list[Metric] = []
    samples: list[Sample] = []
    for index, loss_N in enumerate(torch.cat(losses).unbind(1)):
        at = {"position": (index + 1) * options.bucket}
        values = loss_N.tolist()
        loss, stderr = mean_stderr(values)
        perplexity = math.exp(loss)
        scaled = None if stderr is None else perplexity * stderr
        metrics.append(metric("loss", at, loss, stderr, len(values)))
        metrics.append(metric("perplexity", at, perplexity, scaled, len(values)))
        samples += [{"id": row, "at": at, "loss": value} for row, value in enumerate(values)]
    return metrics, samples


def windows(data_dir: Path, options: Options) -> np.ndarray:
    """Disjoint windows of the packed held-out tokens, int64 [N, length + 1]; N evenly spread.

    Each holds one token more than its length, the last one's target. Windows do not cross shards.
    """
    places = [
        (shard, start)
        for shard in open_shards(data_dir, "heldout")
        for start in range(0, len(shard) - options.length, options.length)
    ]
    if not places:
        raise UserError(
            f"{data_dir}: length: found {options.length}, but no held-out shard has more tokens"
        )
    count = min(options.windows or len(places), len(places))
    chosen = [places[index * len(places) // count] for index in range(count)]
    return np.stack(
        [shard[start : start + options.length + 1].astype(np.int64) for shard, start in chosen]
    )
