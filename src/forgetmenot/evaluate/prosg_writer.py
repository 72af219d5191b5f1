"""The model's own text behind a prompt, for the body modes "self" and "task" of ProSG-PF."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from forgetmenot.data.prosg.evalset import Record
from forgetmenot.data.prosg.templates import question_openers
from forgetmenot.data.prosg.world import World
from forgetmenot.data.sampling import sample_rng


class Writer:
    """Continues prompts token by token, from the cue on that asks for text under the rules.

    `temperature` 0 takes the best token, above 0 draws; each record draws from a stream of its
    own, so that a text depends neither on the batch nor on earlier runs. The model may not write
    marks of a prompt, nor begin a question: asking itself would rehearse the prompt.

    `state` is that after all text so far; `nll_B` float32 [B] the summed NLL, in nats, of the
    `scored` tokens that the model chose (before the ban and the temperature).
    """

    def __init__(
        self,
        model: Any,
        world: World,
        records: Sequence[Record],
        state: Any,
        tokens: int,
        device: str,
        temperature: float = 0.0,
    ) -> None:
        """`state`: after the committed prompts; `tokens`: the most that will be written."""
        self.model, self.world, self.device = model, world, device
        self.state, self.temperature = state, temperature
        self.scored, self.nll_B = 0, torch.zeros(len(records), device=device)
        banned = [world.pad, world.open, world.close]
        banned += [world.ids[word] for word in question_openers()]
        self._banned_V = torch.zeros(len(world.tokens), dtype=torch.bool, device=device)
        self._banned_V[banned] = True
        lots = [sample_rng(0, "prosg_pf self", r.seed).random(tokens) for r in records]
        self._lots_BT = torch.from_numpy(np.stack(lots)).to(device)
        self._logits_BV: torch.Tensor | None = None
        self._columns: list[torch.Tensor] = []

    def write(self, count: int) -> None:
        """Add `count` tokens of text; the first ones of all are the cue."""
        for _ in range(count):
            place = len(self._columns)
            if place < len(self.world.cue):
                token_B = torch.full_like(self.nll_B, int(self.world.cue[place]), dtype=torch.long)
            else:
                token_B = self._choose(place)
            self._feed(token_B)

    def stop(self) -> None:
        """Add a full stop, so that what follows begins a sentence."""
        self._feed(torch.full_like(self.nll_B, self.world.stop, dtype=torch.long))

    def texts(self) -> list[str]:
        """What was written so far, as text."""
        return [self.world.text(row) for row in torch.stack(self._columns, 1).cpu().numpy()]

    def _choose(self, place: int) -> torch.Tensor:
        assert self._logits_BV is not None
        allowed_BV = self._logits_BV.masked_fill(self._banned_V, -torch.inf)
        if self.temperature > 0:
            share_BV = (allowed_BV.double() / self.temperature).softmax(1).cumsum(1)
            lot_B1 = self._lots_BT[:, place, None] * share_BV[:, -1:]
            # The first token whose share reaches beyond the lot; a banned one has no share.
            token_B = torch.searchsorted(share_BV, lot_B1, right=True)[:, 0]
        else:
            token_B = allowed_BV.argmax(1)
        logs_BV = self._logits_BV.log_softmax(1)
        self.nll_B -= logs_BV.gather(1, token_B[:, None])[:, 0]
        self.scored += 1
        return token_B

    def _feed(self, token_B: torch.Tensor) -> None:
        out = self.model(token_B[:, None], state=self.state)
        self.state, self._logits_BV = out.state, out.logits_BLV[:, -1].float()
        self._columns.append(token_B)
