"""A small stand-in model and stream."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from forgetmenot.train.options import Options

VOCAB = 11


class Output(NamedTuple):
    logits_BLV: Tensor
    state: Tensor | None
    aux: list[dict[str, Tensor]]


class Evict(nn.Module):
    """A layer with an eviction budget whose scores depend on its input alone."""

    def __init__(self, width: int, budget: int = 4, margin: int = 1) -> None:
        super().__init__()
        self.budget = budget
        self.receptive_margin = margin
        self.scorer = nn.Linear(width, 2)
        nn.init.ones_(self.scorer.bias)

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        score_BTH = self.scorer(x_BLD).sigmoid() - 0.5
        return x_BLD * (1 + score_BTH.mean(-1, keepdim=True)), {"score_BTH": score_BTH}


class StubModel(nn.Module):
    """Embedding, running mean as the state, dropout, one layer with a budget, head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, width)
        self.mix = nn.Linear(width, width)
        self.evict = Evict(width)
        self.dropout = nn.Dropout(0.2)
        self.generator = nn.Linear(width, width)
        self.head = nn.Linear(width, VOCAB)

    def forward(
        self,
        ids_BL: Tensor,
        state: Tensor | None = None,
        *,
        mask_BL: Tensor | None = None,
        need_state: bool = True,
        logits_to_keep: int | Tensor = 0,
    ) -> Output:
        x_BLD = self.embed(ids_BL)
        if mask_BL is not None:
            x_BLD = x_BLD * mask_BL[..., None]
        total_BLD = x_BLD.cumsum(1) + (0 if state is None else state[:, None])
        y_BLD, aux = self.evict(self.dropout(torch.tanh(self.mix(x_BLD + total_BLD))))
        logits = self.head(y_BLD)
        if isinstance(logits_to_keep, Tensor):
            logits = logits.flatten(0, 1).index_select(0, logits_to_keep)
        return Output(logits, total_BLD[:, -1] if need_state else None, [{}, aux])

    def commit_prompt(self, state: Tensor) -> Tensor:
        return state + self.generator(state)

    def update_penalty(self, state: Tensor) -> Tensor:
        return self.generator(state).square().sum()


class CountingStream:
    """Sequences that count up from a random token: the next token is certain."""

    def __init__(self, lengths: list[int], prompt: int = 0) -> None:
        self.lengths = lengths
        self.prompt = prompt

    def batch(self, rng: np.random.Generator, tokens: int) -> dict[str, np.ndarray]:
        length = int(rng.choice(self.lengths))
        rows = max(1, tokens // length)
        start_B1 = rng.integers(VOCAB, size=(rows, 1))
        ids_BL = (start_B1 + np.arange(self.prompt + length + 1)) % VOCAB
        prompt_BP, body_BL = ids_BL[:, : self.prompt], ids_BL[:, self.prompt :]
        batch = {"input_ids": body_BL[:, :-1], "labels": body_BL[:, 1:]}
        if self.prompt:
            mask_BP = np.arange(self.prompt) >= rng.integers(self.prompt, size=(rows, 1))
            batch |= {
                "prompt_ids": prompt_BP,
                "prompt_mask": mask_BP,
                "lm_labels": batch["labels"],
            }
        return batch


def small_options(**changes: Any) -> Options:
    values: dict[str, Any] = {
        "steps": 24,
        "tokens_per_step": 32,
        "learning_rate": 1e-2,
        "warmup_steps": 3,
        "log_every": 4,
        "checkpoint_every": 5,
        "sparsity_update_every": 2,
        "sparsity_lambda_min": 1e-3,
    }
    return Options(**(values | changes))
