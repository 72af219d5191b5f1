"""Greedy decoding through a model's own state: one batched prefill, then one token a step."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from forgetmenot.errors import UserError


def length_batches(
    lengths: Sequence[int], batch_size: int, spread: float = 0.75
) -> list[list[int]]:
    """Indices of `lengths` in batches of at most `batch_size` similar lengths, longest first.

    No length of a batch is below `spread` of its longest; 1 gives batches of one length. Longest
    first, so that a batch which does not fit the memory fails at once.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if (
            not batches
            or len(batches[-1]) == batch_size
            or lengths[index] < spread * lengths[batches[-1][0]]
        ):
            batches.append([])
        batches[-1].append(index)
    return batches


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
    at `max_new_tokens`. Prompts of similar length share a batch; shorter ones are padded on the
    left, and no padding enters a state. So a result does not depend on which other prompts are
    there, or on their order (as long as no two tokens are equally probable to within rounding).
    Each prompt is committed once it is read: a ProSG model predicts the first token by reading it,
    and all later ones on the weights that the prompt changed. Raises UserError on an empty prompt.
    """
    results: list[list[int]] = [[] for _ in prompts]
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {index}: found no tokens, needs at least one")
    for batch in length_batches([len(prompt) for prompt in prompts], batch_size):
        rows = _greedy_batch(
            model, [prompts[index] for index in batch], max_new_tokens, stop, device
        )
        for index, row in zip(batch, rows, strict=True):
            results[index] = row
    return results


@torch.inference_mode()
def _greedy_batch(
    model: Any,
    prompts: list[Sequence[int]],
    max_new_tokens: int,
    stop: Callable[[list[int]], bool],
    device: str,
) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(rows)))
    input_ids_BL, padding = left_padded(prompts, device)
    state = None
    for _ in range(max_new_tokens):
        output = model(input_ids_BL, state=state, logits_to_keep=1, **padding)
        state = model.commit_prompt(output.state) if state is None else output.state
        padding = {}
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


def left_padded(
    prompts: Sequence[Sequence[int]], device: str
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Prompts as one tensor int64 [B, L], and the mask as an argument if one is padded."""
    longest = max(map(len, prompts))
    input_ids_BL = torch.tensor(
        [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device
    )
    if all(len(prompt) == longest for prompt in prompts):
        return input_ids_BL, {}
    length_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
    place_L = torch.arange(longest, device=device)
    return input_ids_BL, {"mask_BL": place_L >= longest - length_B[:, None]}
