"""Answers out of a document, on the sets of a built recall suite, by protocol.

Every number names its set, its protocol (`recall_prompts`), the tokens that the context was cut to
and how many times it was given.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from forgetmenot import model as models
from forgetmenot.data.tokenizer_folder import load_tokenizer, read_tokenizer_meta
from forgetmenot.errors import UserError
from forgetmenot.evaluate.lm_eval_tasks import LocalTask, run_tasks
from forgetmenot.evaluate.recall_prompts import has_prompt, jrt_prompt, lm_eval_prompt
from forgetmenot.evaluate.results import (
    Metric,
    Sample,
    Skip,
    metric,
    read_lines,
    require_vocabulary,
    skipped,
    write_results,
)
from forgetmenot.evaluate.score import mean_stderr
from forgetmenot.files import write_text

FULL = "full"  # the axis value of a context that is not cut


@dataclass(frozen=True)
class Options:
    """Which sets and protocols to run, and how much to generate."""

    # How prompts are made; every number names its protocol.
    protocols: list[Literal["lm-eval-v0", "lm-eval-v1", "jrt"]] = field(
        default_factory=lambda: ["jrt"]
    )
    sets: list[str] | None = None  # sets to run; null = all that were built
    contexts: list[int] = field(default_factory=lambda: [512, 1024, 2048])  # tokens, of jrt
    passes: list[Literal[1, 2]] = field(default_factory=lambda: [1, 2])  # of jrt: once, twice
    samples: int | None = None  # questions of a set; null = all that were built
    max_new_tokens: int = 48  # generated tokens
    max_length: int = 8192  # most tokens of prompt and continuation; a longer one is an error
    batch_size: int = 16  # prompts decoded together

    def __post_init__(self) -> None:
        for key in ("samples", "max_new_tokens", "max_length", "batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: found {value}, allowed: 1 or more")
        for key in ("protocols", "contexts", "passes"):
            values = getattr(self, key)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{key}: found {values}, allowed: distinct, at least one")
        if min(self.contexts) < 64:
            raise ValueError(f"contexts: found {min(self.contexts)}, allowed: 64 or more")


def evaluate(model_dir: Path, data_dir: Path, options: Options, out: Path, device: str) -> None:
    """Write results.json and samples.jsonl: "contains" and "f1" at {"set", "protocol", "context",
    "passes"}, and "contains_mean" over the sets at {"protocol", "context", "passes"}.

    Sets that the data folder or a protocol lacks are named under "skipped". Raises UserError for
    a set that was not built, and for a prompt that does not fit `max_length`.
    """
    model = models.load(model_dir).to(device)
    meta = json.loads((data_dir / "meta.json").read_text(encoding="utf-8"))
    require_vocabulary(model, read_tokenizer_meta(data_dir)["vocab_size"], data_dir)
    metrics, samples, skips = measure(model, data_dir, options, device)
    write_results(out, "recall_suite", metrics, samples, about={"sets": meta["sets"]}, skips=skips)


def measure(
    model: nn.Module, data_dir: Path, options: Options, device: str
) -> tuple[list[Metric], list[Sample], list[Skip]]:
    """Scores with their standard errors, every sample, and what was skipped."""
    meta = json.loads((data_dir / "meta.json").read_text(encoding="utf-8"))
    known = {**meta["sets"], **meta["skipped"]}
    chosen = list(known) if options.sets is None else options.sets
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise UserError(f"{data_dir}: sets: found {unknown}, allowed: {sorted(known)}")
    skips = [skipped(_set_at(n), meta["skipped"][n]) for n in chosen if n in meta["skipped"]]
    with tempfile.TemporaryDirectory() as folder:
        tasks: dict[str, tuple[dict[str, Any], LocalTask]] = {}
        for name in chosen:
            for at in _places(name, meta, options):
                rows = read_lines(data_dir / f"{name}.jsonl", options.samples)
                rows = [row for row in rows if has_prompt(row, at["protocol"])]
                if not rows:
                    skips.append(
                        skipped(at, f"no question of this set has a prompt in {at['protocol']}")
                    )
                    continue
                task = "-".join(str(value) for value in at.values())
                file = Path(folder, f"{task}.jsonl")
                _write_prompts(file, rows, at, data_dir)
                tasks[task] = at, LocalTask(task, "recall", file, _changes(options))
        results = run_tasks(
            model,
            data_dir,
            [task for _, task in tasks.values()],
            limit=None,
            max_length=options.max_length,
            batch_size=options.batch_size,
            device=device,
        )
    metrics: list[Metric] = []
    samples: list[Sample] = []
    for name, (at, _) in tasks.items():
        found = results[name]
        for key in ("contains", "f1"):
            scores = [logged[key] for logged in found.samples]
            stderr = mean_stderr(scores)[1]
            metrics.append(metric(key, at, found.metrics[key], stderr, len(scores)))
        samples += [_sample(at, logged) for logged in found.samples]
    return [*metrics, *_means(metrics)], samples, skips


def _set_at(name: str) -> dict[str, Any]:
    """nq_512 is the set nq at a context of 512 tokens."""
    head, _, context = name.rpartition("_")
    return {"set": head, "context": int(context)} if context.isdecimal() else {"set": name}


def _places(name: str, meta: dict[str, Any], options: Options) -> Iterator[dict[str, Any]]:
    """The axis values at which a set is scored; none if it was not built."""
    if name not in meta["sets"]:
        return
    fixed = meta["sets"][name]["context"]
    at = _set_at(name)
    for protocol in options.protocols:
        if protocol != "jrt":
            yield {"set": at["set"], "protocol": protocol, "context": fixed or FULL, "passes": 1}
            continue
        for context in options.contexts:
            for passes in options.passes if fixed in (None, context) else ():
                shared = {"protocol": protocol, "context": context, "passes": passes}
                yield {"set": at["set"], **shared}


def _write_prompts(
    file: Path, rows: list[dict[str, Any]], at: dict[str, Any], data_dir: Path
) -> None:
    tokenizer = load_tokenizer(data_dir)
    lines = []
    for row in rows:
        if at["protocol"] == "jrt":
            prompt, answers = (
                jrt_prompt(row, at["context"], at["passes"], tokenizer),
                row["answers"],
            )
        else:
            prompt, answers = lm_eval_prompt(row, at["protocol"])
        lines.append({"id": row["id"], "prompt": prompt, "answers": answers})
    write_text(file, "".join(json.dumps(line) + "\n" for line in lines))


def _changes(options: Options) -> dict[str, Any]:
    kwargs = {"do_sample": False, "max_gen_toks": options.max_new_tokens, "until": ["\n"]}
    return {"generation_kwargs": kwargs}


def _sample(at: dict[str, Any], logged: dict[str, Any]) -> Sample:
    doc = logged["doc"]
    return {
        "id": doc["id"],
        "at": at,
        "contains": logged["contains"],
        "f1": logged["f1"],
        "answers": doc["answers"],
        "output": logged["resps"][0][0],
    }


def _means(metrics: list[Metric]) -> list[Metric]:
    """The mean over sets, each with the same weight, where protocol, context and passes agree."""
    groups: dict[tuple[Any, ...], list[Metric]] = {}
    for entry in metrics:
        if entry["metric"] == "contains":
            key = tuple(entry["at"][axis] for axis in ("protocol", "context", "passes"))
            groups.setdefault(key, []).append(entry)
    means = []
    for key, group in groups.items():
        errors = [entry["stderr"] for entry in group]
        known = None if None in errors else math.hypot(*errors) / len(group)
        at = dict(zip(("protocol", "context", "passes"), key, strict=True))
        value = sum(entry["value"] for entry in group) / len(group)
        means.append(metric("contains_mean", at, value, known, sum(e["n"] for e in group)))
    return means
