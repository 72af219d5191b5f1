"""Greedy decoding through a model's own state: one batched prefill, then one token a step."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from forgetmenot.errors import UserError


def equal_length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of `lengths` in batches of at most `batch_size`, each of one length, longest first.

    Longest first, so that a batch which does not fit the memory fails at once.
    """
    buckets: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        buckets.setdefault(length, []).append(index)
    return [
        indices[start : start + batch_size]
        for _, indices in sorted(buckets.items(), reverse=True)
        for start in range(0, len(indices), batch_size)
    ]


def greedy(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop: Callable[[list[int]], bool],
    device: str,
) -> list[list[int]]:
    """The most probable next token, repeated; returns the new token ids of each prompt.

    A sequence ends when `stop(its new tokens)` is true (the tokens that made it true are kept) or
    at `max_new_tokens`. Only prompts of equal length share a batch: no padding enters a state, so
    a result does not depend on which other prompts are there, or on their order (as long as no two
    tokens are equally probable to within rounding). Raises UserError on an empty prompt.
    """
    results: list[list[int]] = [[] for _ in prompts]
    for batch in equal_length_batches([len(prompt) for prompt in prompts], batch_size):
        if not prompts[batch[0]]:
            raise UserError(f"prompt {batch[0]}: found no tokens, needs at least one")
        rows = _greedy_batch(
            model,
            torch.tensor([list(prompts[index]) for index in batch], device=device),
            max_new_tokens,
            stop,
        )
        for index, row in zip(batch, rows, strict=True):
            results[index] = row
    return results


@torch.inference_mode()
def _greedy_batch(
    model: nn.Module,
    input_ids_BL: torch.Tensor,
    max_new_tokens: int,
    stop: Callable[[list[int]], bool],
) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(len(input_ids_BL))]
    open_rows = set(range(len(rows)))
    state = None
    for _ in range(max_new_tokens):
        output = model(input_ids_BL, state=state)
        state = output.state
        next_B = output.logits_BLV[:, -1].argmax(-1)
        for index, token in enumerate(next_B.tolist()):
            if index in open_rows:
                rows[index].append(token)
                if stop(rows[index]):
                    open_rows.discard(index)
        if not open_rows:
            break
        input_ids_BL = next_B[:, None]
    return rows
