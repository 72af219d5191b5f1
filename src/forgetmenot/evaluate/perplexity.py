"""Held-out perplexity of whole documents, per word, byte and token.

lm-eval scores the documents (`loglikelihood_rolling`); the token perplexity and the standard errors
are added here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from torch import nn

from forgetmenot import model as models
from forgetmenot.data.documents import read_documents
from forgetmenot.data.tokenizer_folder import load_tokenizer, read_tokenizer_meta
from forgetmenot.errors import UserError
from forgetmenot.evaluate.lm_eval_tasks import LocalTask, run_tasks
from forgetmenot.evaluate.results import Metric, Sample, metric, require_vocabulary, write_results
from forgetmenot.evaluate.score import ratio_stderr


@dataclass(frozen=True)
class Options:
    """Which documents to score, in what windows."""

    max_length: int  # tokens of a window; the model starts each window from its empty state
    documents: int | None = None  # first documents of heldout.jsonl to score; null = all
    batch_size: int = 16  # windows per forward pass

    def __post_init__(self) -> None:
        for key in ("max_length", "documents", "batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: found {value}, allowed: 1 or more")


def evaluate(model_dir: Path, data_dir: Path, options: Options, out: Path, device: str) -> None:
    """Write results.json: "word_perplexity", "byte_perplexity", "bits_per_byte",
    "token_perplexity" and "loss" (nats per token), and samples.jsonl: one line a document.

    `data_dir` is a built token folder. Raises UserError for an empty document.
    """
    model = models.load(model_dir).to(device)
    require_vocabulary(model, read_tokenizer_meta(data_dir)["vocab_size"], data_dir)
    metrics, samples = measure(model, data_dir, options, device)
    write_results(out, "perplexity", metrics, samples)


def measure(
    model: nn.Module, data_dir: Path, options: Options, device: str
) -> tuple[list[Metric], list[Sample]]:
    """Perplexities over all documents together; `n` counts documents, the independent samples."""
    file = data_dir / "heldout.jsonl"
    for document in islice(read_documents(file), options.documents):
        if not document["text"].strip():
            raise UserError(f"{file}: document {document['id']} is empty, it has no perplexity")
    result = run_tasks(
        model,
        data_dir,
        [LocalTask("heldout", "heldout", file)],
        limit=options.documents,
        max_length=options.max_length,
        batch_size=options.batch_size,
        device=device,
    )["heldout"]
    tokenizer = load_tokenizer(data_dir)

    samples: list[Sample] = []
    log_likelihoods, words, sizes, tokens = [], [], [], []
    for logged in result.samples:
        log_likelihood, word_count = logged["word_perplexity"]
        _, byte_count = logged["byte_perplexity"]
        token_count = len(tokenizer.encode(logged["doc"]["text"], add_special_tokens=False).ids)
        log_likelihoods.append(log_likelihood)
        words.append(word_count)
        sizes.append(byte_count)
        tokens.append(token_count)
        samples.append(
            {
                "id": logged["doc"]["id"],
                "at": {},
                "loss": -log_likelihood / token_count,
                "log_likelihood": log_likelihood,
                "tokens": token_count,
                "words": word_count,
                "bytes": byte_count,
            }
        )
    losses = [-value for value in log_likelihoods]
    n = len(losses)
    loss, loss_stderr = ratio_stderr(losses, tokens)
    bits_stderr = ratio_stderr([value / math.log(2) for value in losses], sizes)[1]
    lm_eval = result.metrics
    metrics = [
        metric("loss", {}, loss, loss_stderr, n),
        perplexity_metric("token_perplexity", losses, tokens),
        perplexity_metric("word_perplexity", losses, words, lm_eval["word_perplexity"]),
        perplexity_metric("byte_perplexity", losses, sizes, lm_eval["byte_perplexity"]),
        metric("bits_per_byte", {}, lm_eval["bits_per_byte"], bits_stderr, n),
    ]
    return metrics, samples


def perplexity_metric(
    name: str, losses: Sequence[float], sizes: Sequence[float], value: float | None = None
) -> Metric:
    """exp(sum of losses / sum of sizes), or `value`; its standard error by the delta method."""
    loss, stderr = ratio_stderr(losses, sizes)
    perplexity = math.exp(loss) if value is None else value
    return metric(
        name, {}, perplexity, None if stderr is None else perplexity * stderr, len(losses)
    )
