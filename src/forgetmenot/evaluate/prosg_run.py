"""Runs the prompts of one cell of the prompt-forgetting set under every control."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from forgetmenot.data.prosg.evalset import Record
from forgetmenot.data.prosg.world import World
from forgetmenot.evaluate.prosg_controls import RIVALS, TTT, TTT_RANK, Settings, Start, start
from forgetmenot.evaluate.prosg_harm import general_nll
from forgetmenot.evaluate.prosg_rollout import Answers, roll_out


class Run:
    """The prompts of one number of facts, run under controls with the options of `prosg`.

    `floats`: numbers kept for one sequence to the longest distance, by control, where it is a way
    to keep the prompt.
    """

    def __init__(
        self,
        model: Any,
        world: World,
        records: Sequence[Record],
        distances: list[int],
        options: Any,
        device: str,
    ) -> None:
        self.model, self.world, self.records = model, world, records
        self.distances, self.options, self.device = distances, options, device
        self.others = [*records[1:], records[0]]
        o = options
        self.settings = Settings(o.every, o.refresh_share, o.ttt_rate, o.ttt_rank, o.ttt_clip)
        self.floats: dict[str, float] = {}

    def answers(self, control: str) -> Answers | None:
        """Answers of all records under one control; None when it does not apply to the model."""
        batches: list[Answers] = []
        with torch.inference_mode():
            for begin, records in self._starts(control):
                if begin is None:
                    return None
                self._count(control, begin)
                batches.append(
                    roll_out(
                        begin.model,
                        self.world,
                        records,
                        begin.state,
                        self.distances,
                        self.device,
                        self.options.temperature,
                        begin.rehearsal,
                    )
                )
        names = Answers.__dataclass_fields__
        parts = {name: [getattr(batch, name) for batch in batches] for name in names}
        return Answers(**{name: np.concatenate(part) for name, part in parts.items()})

    def general(self) -> dict[str, list[float]]:
        """Nats a token of general text after each prompt, by control: with update and without."""
        asked = [c for c in self.options.controls if c in ("none", *TTT, *TTT_RANK)]
        found: dict[str, list[float]] = {}
        for control in [*asked, "no-update"] if self.options.general_tokens else []:
            nll: list[float] = []
            with torch.inference_mode():
                for begin, records in self._starts(control):
                    if begin is None:
                        break
                    nll += general_nll(
                        begin.model,
                        self.world,
                        records,
                        begin.state,
                        self.options.general_tokens,
                        self.device,
                    )
            if nll:
                found[control] = nll
        return found

    def _starts(self, control: str) -> Iterable[tuple[Start | None, Sequence[Record]]]:
        for first in range(0, len(self.records), self.options.batch_size):
            rows = slice(first, first + self.options.batch_size)
            mine, others = self.records[rows], self.others[rows]
            yield (
                start(control, self.model, self.world, mine, others, self.device, self.settings),
                mine,
            )

    def _count(self, control: str, begin: Start) -> None:
        if control not in ("none", *RIVALS):
            return
        longest = max(len(self.world.encode(record.prompt)) for record in self.records)
        floats = begin.model.state_bytes(longest + self.distances[-1]) / 4
        kept = 0 if begin.rehearsal is None else begin.rehearsal.floats
        self.floats[control] = max(self.floats.get(control, 0), floats + kept)
