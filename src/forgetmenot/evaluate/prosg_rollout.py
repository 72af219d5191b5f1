"""Rolls bodies out behind prompts and asks probes from copies of the state."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from forgetmenot.data.prosg.batch import left_pad
from forgetmenot.data.prosg.evalset import Record
from forgetmenot.data.prosg.world import CLOSE, OPEN, POOLS, World
from forgetmenot.mixers.base import select_rows

CHUNK = 256
"""Body tokens per forward pass: bounds the memory of the logits."""


@dataclass(frozen=True)
class Answers:
    """Scores of every probe at every asked distance, numpy [B, Q, D]; filler_nll [B] in nats.

    accuracy: best of the answer pool is right. greedy: best of the whole vocabulary is right.
    rank: 1 = best of the pool, ties count half. nll: of the answer over the whole vocabulary.
    chosen: token id of the best of the pool.
    """

    accuracy: np.ndarray
    greedy: np.ndarray
    rank: np.ndarray
    nll: np.ndarray
    chosen: np.ndarray
    filler_nll: np.ndarray


def prompt_state(model: Any, world: World, prompts: Sequence[str], device: str) -> Any:
    """State after the prompts (left-padded into one batch) are read and committed."""
    ids, mask = left_pad([world.encode(prompt) for prompt in prompts], world.pad)
    ids_BP, mask_BP = torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
    return model.commit_prompt(model(ids_BP, mask_BL=mask_BP).state)


def controlled_state(
    control: str, model: Any, world: World, records: Sequence[Record], others: Sequence[Record],
    device: str,
) -> Any | None:  # fmt: skip
    """State that the bodies start from under a control; None when the model has no update.

    "none": the own prompt. "wrong-prompt": another sample's. "wrong-update": the own recurrent
    state with the update from another sample's prompt. "no-update": the own state without its
    update. "no-prompt": an empty prompt.
    """
    if control == "no-prompt":
        return prompt_state(model, world, [f"{OPEN} {CLOSE}"] * len(records), device)
    if control == "wrong-prompt":
        return prompt_state(model, world, [record.prompt for record in others], device)
    state = prompt_state(model, world, [record.prompt for record in records], device)
    if control == "none":
        return state
    if getattr(state, "update", None) is None:
        return None
    if control == "no-update":
        return state._replace(update=None)
    wrong = prompt_state(model, world, [record.prompt for record in others], device)
    return state._replace(update=wrong.update)


def roll_out(
    model: Any,
    world: World,
    records: Sequence[Record],
    state: Any,
    distances: Sequence[int],
    device: str,
) -> Answers:
    """Reads each body once; at each asked distance the probes are asked from copies of the state.

    The state that a probe leaves behind is dropped, so no answer leaks into a later distance.
    `distances` are some of the records' own.
    """
    questions = _Questions(world, records, device)
    scores: list[dict[str, torch.Tensor]] = []
    nll_B = torch.zeros(len(records), device=device)
    scored = 0
    for distance, chunks in _segments(world, records, max(distances), device):
        for chunk_BL in chunks:
            out = model(chunk_BL, state=state)
            state = out.state
            logits_BVL = out.logits_BLV[:, :-1].float().transpose(1, 2)
            nll_B += functional.cross_entropy(logits_BVL, chunk_BL[:, 1:], reduction="none").sum(1)
            scored += chunk_BL.shape[1] - 1
        if distance in distances:
            scores.append(questions.ask(model, state))
    stacked = {name: torch.stack([s[name] for s in scores], -1).cpu().numpy() for name in scores[0]}
    return Answers(**stacked, filler_nll=(nll_B / max(scored, 1)).cpu().numpy())


def _segments(
    world: World, records: Sequence[Record], longest: int, device: str
) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
    """For each distance up to `longest` the chunks int64 [B, L] of body that lead to it."""
    yield 0, ()
    for index, distance in enumerate(records[0].distances[1:]):
        if distance > longest:
            return
        body = np.stack([world.encode(record.body[index]) for record in records])
        yield distance, torch.split(torch.from_numpy(body).to(device), CHUNK, dim=1)


class _Questions:
    """The probes of a batch: Q for each of its B records, right-padded into one batch of B Q."""

    def __init__(self, world: World, records: Sequence[Record], device: str) -> None:
        probes = [probe for record in records for probe in record.probes]
        rows = [world.encode(probe.question) for probe in probes]
        lengths = np.array([len(row) for row in rows])
        ids = np.full((len(rows), lengths.max()), world.pad)
        for line, row in zip(ids, rows, strict=True):
            line[: len(row)] = row
        pools = [world.groups[POOLS[probe.kind]] for probe in probes]
        answers = [world.ids[probe.answer] for probe in probes]
        self.shape = (len(records), len(records[0].probes))
        self.ids_QL = torch.from_numpy(ids).to(device)
        self.last_Q = torch.from_numpy(lengths - 1).to(device)
        self.answer_Q = torch.tensor(answers, device=device)
        self.first_Q1 = torch.tensor([[pool.start] for pool in pools], device=device)
        self.stop_Q1 = torch.tensor([[pool.stop] for pool in pools], device=device)
        self.owner_Q = torch.arange(len(records), device=device).repeat_interleave(self.shape[1])

    def ask(self, model: Any, state: Any) -> dict[str, torch.Tensor]:
        """Scores [B, Q] of every probe from a copy of `state`, which is left as it was."""
        copies = select_rows(state, self.owner_Q)
        logits_QLV = model(self.ids_QL, state=copies).logits_BLV
        rows_Q = torch.arange(len(self.last_Q), device=logits_QLV.device)
        logits_QV = logits_QLV[rows_Q, self.last_Q].float()
        vocabulary_V = torch.arange(logits_QV.shape[1], device=logits_QV.device)
        outside_QV = (vocabulary_V < self.first_Q1) | (vocabulary_V >= self.stop_Q1)
        pool_QV = logits_QV.masked_fill(outside_QV, -torch.inf)
        gold_Q1 = self.answer_Q[:, None]
        score_Q1 = logits_QV.gather(1, gold_Q1)
        above_Q = (pool_QV > score_Q1).sum(1)
        level_Q = (pool_QV == score_Q1).sum(1)
        chosen_Q = pool_QV.argmax(1)
        scores = {
            "accuracy": (chosen_Q == self.answer_Q).float(),
            "greedy": (logits_QV.argmax(1) == self.answer_Q).float(),
            "rank": 1 + above_Q + (level_Q - 1) / 2,
            "nll": functional.cross_entropy(logits_QV, self.answer_Q, reduction="none"),
            "chosen": chosen_Q,
        }
        return {name: score.view(self.shape) for name, score in scores.items()}
