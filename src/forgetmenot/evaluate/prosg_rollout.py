"""Rolls bodies out behind prompts and asks probes from copies of the state.

A body is read, or, in the mode "self", written by the model itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from forgetmenot.data.prosg.evalset import Record
from forgetmenot.data.prosg.world import POOLS, World
from forgetmenot.evaluate.prosg_writer import Writer
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


class Rehearsal(Protocol):
    """What is done to the state after every `every` tokens of a body, before the next one.

    `floats`: numbers that it keeps for one sequence, beside the state.
    """

    every: int
    floats: int

    def __call__(self, state: Any) -> Any:
        """The state to go on from."""


def roll_out(
    model: Any,
    world: World,
    records: Sequence[Record],
    state: Any,
    distances: Sequence[int],
    device: str,
    temperature: float = 0.0,
    rehearsal: Rehearsal | None = None,
) -> Answers:
    """Reads each body once; at each asked distance the probes are asked from copies of the state.

    The state that a probe leaves behind is dropped, so no answer leaks into a later distance.
    `distances` are some of the records' own. Records of the mode "self" have no body: the model
    writes it, greedily or, with a `temperature` above 0, drawn from the records' seeds; their
    filler_nll is that of the model's own text under the model. A `rehearsal` that is due where a
    probe is asked comes after the probe.
    """
    questions = _Questions(world, records, device)
    scores: list[dict[str, torch.Tensor]] = []
    nll_B = torch.zeros(len(records), device=device)
    scored = 0
    if records[0].mode == "self":
        writer = Writer(model, world, records, state, max(distances), device, temperature)
        pieces = _written(writer, records[0].distances, rehearsal)
    else:
        pieces = _read(model, world, records, state, device, rehearsal)
    for distance, state_after, piece_nll_B, count in pieces:
        nll_B += piece_nll_B
        scored += count
        if distance in distances:
            scores.append(questions.ask(model, state_after))
        if distance >= max(distances):
            break
    stacked = {name: torch.stack([s[name] for s in scores], -1).cpu().numpy() for name in scores[0]}
    return Answers(**stacked, filler_nll=(nll_B / max(scored, 1)).cpu().numpy())


Piece = tuple[int, Any, torch.Tensor, int]
"""Distance, the state there, summed NLL [B] of the text since the last one, tokens scored."""


def _read(
    model: Any,
    world: World,
    records: Sequence[Record],
    state: Any,
    device: str,
    rehearsal: Rehearsal | None,
) -> Iterator[Piece]:
    """The bodies as the records give them; the first token of each chunk is not scored."""
    yield 0, state, torch.zeros(len(records), device=device), 0
    for index, (before, distance) in enumerate(pairwise(records[0].distances)):
        body = np.stack([world.encode(record.body[index]) for record in records])
        nll_B = torch.zeros(len(records), device=device)
        scored = 0
        cuts = _cuts(before, distance, rehearsal)
        for place, chunk_BL in zip(
            cuts,
            torch.from_numpy(body).to(device).split([len(cut) for cut in cuts], 1),
            strict=True,
        ):
            state = _rehearsed(state, place, rehearsal)
            out = model(chunk_BL, state=state)
            state = out.state
            logits_BVL = out.logits_BLV[:, :-1].float().transpose(1, 2)
            nll_B += functional.cross_entropy(logits_BVL, chunk_BL[:, 1:], reduction="none").sum(1)
            scored += chunk_BL.shape[1] - 1
        yield distance, state, nll_B, scored


def _written(
    writer: Writer, distances: Sequence[int], rehearsal: Rehearsal | None
) -> Iterator[Piece]:
    """The model's own text, up to each distance, where a full stop is put for it."""
    yield 0, writer.state, torch.zeros_like(writer.nll_B), 0
    for before, distance in pairwise(distances):
        scored, nll_B = writer.scored, writer.nll_B.clone()
        for cut in _cuts(before, distance, rehearsal):
            writer.state = _rehearsed(writer.state, cut, rehearsal)
            writer.write(len(cut) - (cut.stop == distance))
        writer.stop()
        yield distance, writer.state, writer.nll_B - nll_B, writer.scored - scored


def _cuts(start: int, stop: int, rehearsal: Rehearsal | None) -> list[range]:
    """Distances to be read in one pass each: at most CHUNK, and no rehearsal between them."""
    cuts = []
    while start < stop:
        due = stop if rehearsal is None else start + rehearsal.every - start % rehearsal.every
        cuts.append(range(start, min(stop, start + CHUNK, due)))
        start = cuts[-1].stop
    return cuts


def _rehearsed(state: Any, cut: range, rehearsal: Rehearsal | None) -> Any:
    """The state that a cut is read from."""
    due = rehearsal is not None and cut.start > 0 and cut.start % rehearsal.every == 0
    return rehearsal(state) if rehearsal is not None and due else state


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
