"""What is minimised: the language-model loss, and the prompted loss of ProSG."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from forgetmenot.errors import UserError
from forgetmenot.fuse import fused
from forgetmenot.train.options import Options

IGNORED = -100
AUXILIARY = ("sg", "rec", "kl")  # further terms of ProSG: `<name>_weight`, logged as `<name>_loss`


class Loss(NamedTuple):
    """`loss`: scalar to minimise. `metrics`: detached scalars. `aux`: one dict a layer."""

    loss: Tensor
    metrics: dict[str, Tensor]
    aux: list[dict[str, Tensor]]


def batch_tensors(
    arrays: dict[str, np.ndarray[Any, Any]], device: torch.device
) -> dict[str, Tensor]:
    """Copy a batch to `device`, adding `scored` [N], the flat positions with a label.

    The positions are found here, on the host, because finding them on a GPU would stall it; and
    it saves most of the loss's work on sets where only the answers are scored.
    """
    tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}
    tensors["scored"] = torch.from_numpy(np.flatnonzero(arrays["labels"] != IGNORED))
    if device.type == "cuda":
        tensors = {key: value.pin_memory() for key, value in tensors.items()}
    return {key: value.to(device, non_blocking=True) for key, value in tensors.items()}


@fused
def _losses(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Cross entropy [N] in float32; 0 where there is no label."""
    return F.cross_entropy(logits_NV.float(), labels_N, ignore_index=IGNORED, reduction="none")


def _cross_entropy(logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
    """Mean over the positions with a label; 0 where there is none."""
    total = _losses(logits_BLV.flatten(0, 1), labels_BL.flatten()).sum()
    return total / (labels_BL != IGNORED).sum().clamp(min=1)


def _answers(loss_N: Tensor, logits_NV: Tensor, labels_N: Tensor) -> dict[str, Tensor]:
    """Mean loss and accuracy over positions that all have a label; 0 if there are none."""
    count = max(len(labels_N), 1)
    accuracy = (logits_NV.detach().argmax(-1) == labels_N).sum() / count
    return {"loss": loss_N.sum() / count, "accuracy": accuracy}


def _plain(model: Any, batch: dict[str, Tensor]) -> Loss:
    """The head runs where there is a label only, which on many sets is a small part."""
    labels_N, scored_N = batch["labels"].flatten(), batch["scored"]
    is_everywhere = len(scored_N) == len(labels_N)
    wanted = 0 if is_everywhere else scored_N
    out = model(batch["input_ids"], need_state=False, logits_to_keep=wanted)
    if not is_everywhere:
        labels_N = labels_N.index_select(0, scored_N)
    logits_NV = out.logits_BLV.flatten(0, -2)
    terms = _answers(_losses(logits_NV, labels_N), logits_NV, labels_N)
    return Loss(terms["loss"], {key: value.detach() for key, value in terms.items()}, out.aux)


def _prompt_labels(prompt_ids_BP: Tensor, prompt_mask_BP: Tensor) -> Tensor:
    """Next-token labels of a left-padded prompt; padding and the last position are not scored."""
    labels_BP = torch.full_like(prompt_ids_BP, IGNORED)
    labels_BP[:, :-1] = prompt_ids_BP[:, 1:]
    return labels_BP.masked_fill(~prompt_mask_BP, IGNORED)


def _detached(state: Any) -> Any:
    """A model's state, or any nesting of tuples, without gradients."""
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, tuple | list):
        parts = [_detached(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state


def _auxiliary(
    model: Any, batch: dict[str, Tensor], prompt: Any, state: Any, body: Any, options: Options
) -> dict[str, Tensor]:
    """The extra terms that the options ask for. Raises UserError when the model has none."""
    asked = [name for name in AUXILIARY if getattr(options, f"{name}_weight") > 0]
    if not asked:
        return {}
    if not hasattr(model, "auxiliary_losses"):
        found = getattr(options, f"{asked[0]}_weight")
        raise UserError(f"train: {asked[0]}_weight: found {found}, allowed: 0 without ProSG")
    terms: dict[str, Tensor] = model.auxiliary_losses(
        batch, prompt, state, body.logits_BLV, options
    )
    return terms


def loss(model: Any, batch: dict[str, Tensor], options: Options) -> Loss:
    """Loss of one batch (from `batch_tensors`; keys and shapes as in the data plugin contract).

    Plain batches: cross entropy over `labels`. Prompted batches (with `prompt_ids`,
    `prompt_mask` and `lm_labels`): the prompt is read first, its state is committed, and the body
    is read from that state; the loss is the body's, plus `lm_weight` times that of every body
    token, plus `prompt_weight` times that of the prompt, plus `update_penalty` times the squared
    norm of the generated weight update (0 for a plain model), plus ProSG's further terms, each
    times its weight (`sg_weight`, `rec_weight`, `kl_weight`; `prosg/losses.py`). Without
    `state_gradient` the body's loss ends at the state after the prompt. `aux` is that of the
    body's pass.
    """
    if "prompt_ids" not in batch:
        return _plain(model, batch)

    prompt_ids_BP, prompt_mask_BP = batch["prompt_ids"], batch["prompt_mask"]
    prompt = model(prompt_ids_BP, mask_BL=prompt_mask_BP)
    read = prompt.state if options.state_gradient else _detached(prompt.state)
    state = model.commit_prompt(read)
    body = model(batch["input_ids"], state=state)
    # Where an answer is asked for, the label is the next token, as everywhere else.
    lm_labels_N, scored_N = batch["lm_labels"].flatten(), batch["scored"]
    logits_NV = body.logits_BLV.flatten(0, 1)
    loss_N = _losses(logits_NV, lm_labels_N)
    answers = (x.index_select(0, scored_N) for x in (loss_N, logits_NV.detach(), lm_labels_N))
    terms = _answers(*answers)
    terms["lm_loss"] = loss_N.sum() / (lm_labels_N != IGNORED).sum().clamp(min=1)
    terms["prompt_loss"] = _cross_entropy(
        prompt.logits_BLV, _prompt_labels(prompt_ids_BP, prompt_mask_BP)
    )
    terms["update_norm"] = torch.as_tensor(
        model.update_penalty(state), dtype=torch.float32, device=prompt_ids_BP.device
    )
    total = (
        terms["loss"]
        + options.lm_weight * terms["lm_loss"]
        + options.prompt_weight * terms["prompt_loss"]
        + options.update_penalty * terms["update_norm"]
    )
    for name, value in _auxiliary(model, batch, read, state, body, options).items():
        total = total + getattr(options, name.replace("_loss", "_weight")) * value
        terms[name] = value
    if hasattr(model, "update_ratios"):
        ratios = model.update_ratios(state)
        terms |= {f"update_ratio/{target}": ratio_B.mean() for target, ratio_B in ratios.items()}
    return Loss(total, {key: value.detach() for key, value in terms.items()}, body.aux)
