"""Further terms of ProSG's objective (construction 6.4); all are off by default."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forgetmenot.mixers.base import select_rows
from forgetmenot.model import State
from forgetmenot.prosg.gradient import Gradient, target_gradients

IGNORED = -100


def auxiliary(
    model: Any,
    batch: dict[str, Tensor],
    prompt: State,
    state: State,
    logits_BLV: Tensor,
    options: Any,
) -> dict[str, Tensor]:
    """The terms whose weight in `options` (train/options.py) is above 0, unweighted, by name.

    prompt: the state after the prompt. state: the same after `commit_prompt`. logits_BLV: of the
    body, read from `state`. Raises ValueError when the model's update is not of the kind needed.
    """
    terms = {}
    if options.sg_weight > 0:
        terms["sg_loss"] = synthetic_gradient(model, batch, prompt, state, options)
    if options.rec_weight > 0:
        terms["rec_loss"] = recall(model, batch, state)
    if options.kl_weight > 0:
        terms["kl_loss"] = distillation(model, batch, prompt, logits_BLV, options.kl_window)
    return terms


def synthetic_gradient(
    model: Any, batch: dict[str, Tensor], prompt: State, state: State, options: Any
) -> Tensor:
    """L_sg: distance of the factors from the true gradient of a teacher loss at dW = 0.

    Teacher: cross entropy of the prompt itself, or of the body's answers read from the prompt's
    state. Distance: 1 - cosine, or the squared error relative to |G|^2; mean over targets and
    sequences, G detached.
    """
    model.require_factors(state)
    truth = teacher_gradients(model, batch, prompt, options.sg_teacher)
    distances = []
    for block, factors in zip(truth, state.update, strict=True):
        for name, gradient in block.items():
            if options.sg_distance == "cosine":
                distances.append(1 - gradient.cosine(factors[name]))
            else:
                distances.append(gradient.relative_error(factors[name]))
    return torch.stack(distances).mean()


def teacher_gradients(
    model: Any, batch: dict[str, Tensor], prompt: State, teacher: str
) -> list[dict[str, Gradient]]:
    """True gradients of every target at dW = 0, each sequence's of its own mean cross entropy.

    teacher: "prompt" or "response". Not for `torch.inference_mode`.
    """
    if teacher == "prompt":
        ids_BP, mask_BP = batch["prompt_ids"], batch["prompt_mask"]
        known_BP = mask_BP[:, :-1]
        labels_BP = ids_BP[:, 1:].masked_fill(~known_BP, IGNORED)

        def of_prompt() -> Tensor:
            logits_BPV = model.base(ids_BP, mask_BL=mask_BP).logits_BLV
            return _per_sequence(logits_BPV[:, :-1], labels_BP)

        return target_gradients(model.targets(), of_prompt, mask_BP)
    start = State(prompt.layers)

    def of_response() -> Tensor:
        logits_BLV = model.base(batch["input_ids"], start).logits_BLV
        return _per_sequence(logits_BLV, batch["labels"])

    return target_gradients(model.targets(), of_response)


def recall(model: Any, batch: dict[str, Tensor], state: State) -> Tensor:
    """L_rec: cross entropy of the answers with the recurrent state at zero and only dW present."""
    if state.update is None:
        raise ValueError("state: found no update; allowed: one that the prompt left")
    logits_BLV = model(batch["input_ids"], State((), state.update)).logits_BLV
    logits_NV, labels_N = _scored(logits_BLV, batch)
    return F.cross_entropy(logits_NV, labels_N, reduction="sum") / max(len(labels_N), 1)


def distillation(
    model: Any, batch: dict[str, Tensor], prompt: State, logits_BLV: Tensor, window: int
) -> Tensor:
    """L_kl: KL(teacher || model) at the answers; the teacher has the prompt right before the probe.

    The teacher is the base, going on from the state after the prompt with the last `window` tokens
    up to the answer, which hold the probe. It is not trained.
    """
    ids_BL, scored_N = batch["input_ids"], batch["scored"]
    if not len(scored_N):
        return logits_BLV.sum() * 0
    window = min(window, ids_BL.shape[1])
    row_N = scored_N // ids_BL.shape[1]
    last_N = scored_N % ids_BL.shape[1]
    first_N = (last_N - window + 1).clamp(min=0)
    steps_W = torch.arange(window, device=ids_BL.device)
    with torch.no_grad():
        state = State(select_rows(prompt.layers, row_N))
        asked_NW = ids_BL[row_N[:, None], first_N[:, None] + steps_W]
        teacher_NWV = model.base(asked_NW, state, need_state=False).logits_BLV
        numbers_N = torch.arange(len(last_N), device=ids_BL.device)
        teacher_NV = teacher_NWV[numbers_N, last_N - first_N].float().log_softmax(-1)
    model_NV = _scored(logits_BLV, batch)[0].log_softmax(-1)
    return F.kl_div(model_NV, teacher_NV, reduction="batchmean", log_target=True)


def _scored(logits_BLV: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    scored_N = batch["scored"]
    logits_NV = logits_BLV.flatten(0, 1).index_select(0, scored_N).float()
    return logits_NV, batch["labels"].flatten().index_select(0, scored_N)


def _per_sequence(logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
    """Sum over sequences of each one's mean cross entropy over its labels."""
    loss_BL = F.cross_entropy(
        logits_BLV.transpose(1, 2).float(), labels_BL, ignore_index=IGNORED, reduction="none"
    )
    return (loss_BL.sum(1) / (labels_BL != IGNORED).sum(1).clamp(min=1)).sum()
