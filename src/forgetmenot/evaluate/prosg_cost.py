"""What a prompt costs: time to read it, to make the update, and of a token after it, here.

ProSG specification, section 6.8 (cost). Times are medians on the machine that the row names.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from forgetmenot import model as models
from forgetmenot.data.prosg.batch import left_pad
from forgetmenot.data.prosg.evalset import Record, read_records
from forgetmenot.data.prosg.world import World
from forgetmenot.evaluate.efficiency import WARMUP, median
from forgetmenot.evaluate.results import Metric, Sample, metric, require_vocabulary, write_results
from forgetmenot.provenance import device_name, versions


@dataclass(frozen=True)
class Options:
    """What to time, behind prompts of the split iid."""

    mode: Literal["neutral", "interfering", "real", "task"] = "interfering"  # what is read on
    facts: list[int] | None = None  # facts per prompt; null = all that were built
    batches: list[int] = field(default_factory=lambda: [1])  # sequences at once
    repeats: int = 5  # timed readings of the prompts
    blocks: int = 10  # timed blocks of decoding steps, each of `steps` steps
    steps: int = 32  # decoding steps in a block
    dtype: Literal["float32", "bfloat16"] = "float32"  # of weights and activations

    def __post_init__(self) -> None:
        for name in ("facts", "batches", "repeats", "blocks", "steps"):
            value = getattr(self, name)
            least = min(value, default=0) if isinstance(value, list) else value
            if least is not None and least < 1:
                raise ValueError(f"{name}: found {value}, allowed: 1 or more")


def evaluate(model_dir: Path, data_dir: Path, options: Options, out: Path, device: str) -> None:
    """Write results.json and samples.jsonl (every single timing, as "ms").

    Metrics at {"facts", "batch"}: prefill_ms (reading the prompts), commit_ms (making the update),
    decode_ms (of one step after them, all sequences of the batch), prompt_tokens (the longest) and
    session_floats (what is kept for one sequence right after the prompt, counted by the code). At
    batch 1, for low-rank updates, also merged_decode_ms: the update is in the weights. Besides
    device, versions and dtype, as texts. Raises UserError when the vocabularies differ.
    """
    world = World.load(data_dir)
    model = models.load(model_dir).to(device, getattr(torch, options.dtype))
    require_vocabulary(model, len(world.tokens), data_dir)
    found = versions()
    texts = {
        "device": device_name(),
        "versions": ", ".join(f"{name} {found[name]}" for name in _SHOWN if name in found),
        "dtype": options.dtype,
    }
    metrics: list[Metric] = []
    samples: list[Sample] = []
    for facts in world.settings["facts"] if options.facts is None else options.facts:
        records = read_records(data_dir, "iid", options.mode, facts)
        for batch in options.batches:
            timer = _Timer({"facts": facts, "batch": batch}, device)
            with torch.inference_mode():
                chosen = [records[n % len(records)] for n in range(batch)]
                _time(timer, model, world, chosen, options)
            metrics += timer.metrics
            metrics += [
                {"metric": name, "at": timer.at, "value": text, "stderr": None, "n": 1}
                for name, text in texts.items()
            ]
            samples += timer.samples
    write_results(out, "prosg_cost", metrics, samples)


_SHOWN = ("python", "torch", "triton")


def _time(
    timer: "_Timer", model: Any, world: World, records: Sequence[Record], options: Options
) -> None:
    ids, mask = left_pad([world.encode(record.prompt) for record in records], world.pad)
    ids_BP, mask_BP = (torch.from_numpy(x).to(timer.device) for x in (ids, mask))
    counts = {"prompt_tokens": ids.shape[1], "session_floats": model.state_bytes(ids.shape[1]) // 4}
    timer.metrics += [metric(name, timer.at, value, None, 1) for name, value in counts.items()]
    read = timer.median(
        "prefill_ms", options.repeats, 1, lambda _: model(ids_BP, mask_BL=mask_BP).state
    )
    state = timer.median("commit_ms", options.repeats, 1, lambda _: model.commit_prompt(read))
    tokens = np.resize(world.encode(" ".join(records[0].body)), options.steps)
    token_SB1 = torch.from_numpy(tokens).to(timer.device)[:, None, None].expand(-1, len(ids), 1)

    def decode(before: Any) -> Any:
        for token_B1 in token_SB1:
            before = model(token_B1, state=before).state
        return before

    timer.median("decode_ms", options.blocks, options.steps, decode, state)
    if len(records) == 1 and getattr(getattr(model, "generator", None), "has_factors", False):
        again = model.commit_prompt(model(ids_BP, mask_BL=mask_BP).state)
        with model.merged(again) as plain:
            timer.median("merged_decode_ms", options.blocks, options.steps, decode, plain)


class _Timer:
    """Timings of one row."""

    def __init__(self, at: dict[str, Any], device: str) -> None:
        self.at, self.device = at, device
        self.metrics: list[Metric] = []
        self.samples: list[Sample] = []

    def median(
        self, name: str, repeats: int, steps: int, call: Callable[[Any], Any], result: Any = None
    ) -> Any:
        """Time `call`, which gets its last result; add its median for one of `steps` steps, in ms.

        Returns the last result.
        """
        found = []
        for number in range(WARMUP + repeats):
            self._synchronize()
            start = time.perf_counter()
            result = call(result)
            self._synchronize()
            if number >= WARMUP:
                found.append(1e3 * (time.perf_counter() - start) / steps)
        self.metrics.append(metric(name, self.at, *median(found), len(found)))
        at = {**self.at, "kind": name.removesuffix("_ms")}
        self.samples += [{"id": n, "at": at, "ms": ms} for n, ms in enumerate(found)]
        return result

    def _synchronize(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
