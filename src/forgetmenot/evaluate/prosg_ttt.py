"""Rival of a synthetic gradient: the true one, followed on the prompt at test time.

ProSG specification, section 6.7, rival 9: the upper reference for "synthetic".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from forgetmenot.model import LanguageModel, Output, State
from forgetmenot.prosg import wrap
from forgetmenot.prosg.apply import Hook, Targets, applied
from forgetmenot.prosg.gradient import target_gradients

IGNORED = -100
Change = list[dict[str, torch.Tensor]]
"""Of every block and target: dW [B, O, I], what the prompt adds to W of each sequence."""


class Tuned:
    """A model whose prompts have tuned its targets: read plainly, then used with the change.

    The contract of ProSG's wrapper: `commit_prompt` puts the change into the state.
    """

    def __init__(
        self, base: LanguageModel, targets: Targets, change: Change, rank: int | None = None
    ) -> None:
        self.base, self.targets, self.change, self.rank = base, targets, change, rank

    def __call__(
        self,
        input_ids_BL: torch.Tensor,
        state: State | None = None,
        *,
        mask_BL: torch.Tensor | None = None,
    ) -> Output:
        """As `LanguageModel.forward`, with the change that `state` carries."""
        update = None if state is None else state.update
        before = State(state.layers) if state is not None and state.layers else None
        with applied(_hooks(self.targets, update)):
            out = self.base(input_ids_BL, before, mask_BL=mask_BL)
        assert out.state is not None
        return out._replace(state=State(out.state.layers, update))

    def commit_prompt(self, state: State) -> State:
        """The state after the prompts that tuned the model."""
        return State(state.layers, self.change)

    def state_bytes(self, length: int) -> int:
        """Bytes of the state and of the change of one sequence, float32; factors if truncated."""
        shapes = [linear.weight.shape for block in self.targets for linear in block.values()]
        floats = sum(o * i if self.rank is None else self.rank * (o + i) for o, i in shapes)
        return self.base.state_bytes(length) + 4 * floats


def tune(
    model: Any,
    prompts: Sequence[np.ndarray],
    pad: int,
    steps: int,
    rate: float,
    rank: int | None,
    clip: float,
    device: str,
) -> Tuned | None:
    """`model` after `steps` of gradient descent on each prompt's own mean cross entropy.

    prompts: token ids int64 [P] each. The targets are ProSG's default ones. Each sequence has
    weights of its own; its change is truncated to `rank` by SVD after the last step (None: in
    full) and its norm bounded by `clip` |W|, as ProSG's is at inference. None for models that are
    no plain LanguageModel or whose state ProSG does not read.
    """
    if not isinstance(model, LanguageModel):
        return None
    # A caller may be in inference mode, which records no gradients.
    with torch.inference_mode(False):
        try:
            targets = wrap(model, generator="static").targets()
        except (TypeError, ValueError):
            return None
        ids_BP, labels_BP = _padded(prompts, pad, device)
        empty = State(())
        change: Change = [
            {n: w.weight.new_zeros(len(prompts), *w.weight.shape) for n, w in block.items()}
            for block in targets
        ]
        for _ in range(steps):
            reader = Tuned(model, targets, change)

            def loss(reader: Tuned = reader) -> torch.Tensor:
                logits_BPV = reader(ids_BP, reader.commit_prompt(empty)).logits_BLV
                return _per_sequence(logits_BPV, labels_BP)

            for block, gradients in zip(change, target_gradients(targets, loss), strict=True):
                for name, gradient in gradients.items():
                    inputs_BTI, errors_BTO = gradient
                    block[name] = block[name] - rate * (errors_BTO.mT @ inputs_BTI)
        return Tuned(model, targets, _bounded(targets, change, rank, clip), rank)


def _bounded(targets: Targets, change: Change, rank: int | None, clip: float) -> Change:
    def bounded(linear: torch.nn.Linear, dw_BOI: torch.Tensor) -> torch.Tensor:
        if rank is not None:
            u, s, vh = torch.linalg.svd(dw_BOI, full_matrices=False)
            dw_BOI = (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]
        norm_B11 = dw_BOI.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-30)
        return dw_BOI * (clip * linear.weight.detach().norm() / norm_B11).clamp(max=1.0)

    return [
        {name: bounded(linears[name], dw) for name, dw in block.items()}
        for linears, block in zip(targets, change, strict=True)
    ]


def _hooks(targets: Targets, update: Change | None) -> list[tuple[torch.nn.Module, Hook]]:
    return [
        (linears[name], _adder(dw_BOI))
        for linears, block in zip(targets, update or [], strict=update is not None)
        for name, dw_BOI in block.items()
    ]


def _adder(dw_BOI: torch.Tensor) -> Hook:
    def hook(_: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return output + torch.bmm(args[0], dw_BOI.mT)

    return hook


def _padded(
    prompts: Sequence[np.ndarray], pad: int, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts int64 [B, P] padded on the right, where no token sees it, and their labels."""
    longest = max(map(len, prompts))
    ids = np.full((len(prompts), longest), pad)
    labels = np.full((len(prompts), longest), IGNORED)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        labels[row, : len(prompt) - 1] = prompt[1:]
    return torch.from_numpy(ids).to(device), torch.from_numpy(labels).to(device)


def _per_sequence(logits_BLV: torch.Tensor, labels_BL: torch.Tensor) -> torch.Tensor:
    """Sum over sequences of each one's mean cross entropy, so that gradients do not mix."""
    loss_BL = F.cross_entropy(
        logits_BLV.float().transpose(1, 2), labels_BL, ignore_index=IGNORED, reduction="none"
    )
    return (loss_BL.sum(1) / (labels_BL != IGNORED).sum(1)).sum()
