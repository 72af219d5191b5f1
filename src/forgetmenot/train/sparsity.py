"""The controller that holds LTE's kept tokens at their budget (LTE reference, learning signal).

One lambda a layer and head weighs an L1 term on the positive scores, and follows the number of
tokens that the head keeps. Lambda and the moving averages are tensors, saved in checkpoints.

With sequences of one length this is the reference's rule. With mixed lengths, which the reference
does not have, two things are ours:

- A batch whose sequences cannot overflow the budget (T - m <= target) is neither counted nor
  pressed: nothing has to be evicted there.
- Kept tokens are counted, not scaled, in a moving average for each power of two of the length;
  lambda follows the largest of them. So the budget holds at the length where it is tightest,
  whether the share kept falls with the length or not, and however often that length is drawn.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from forgetmenot.train.options import Options

Aux = list[dict[str, Tensor]]


class SparsityController:
    """L1 pressure and lambda updates for the layers of `model` that have an eviction budget.

    Such a layer exposes `budget` (tokens, None = no cap) and `receptive_margin` (m, positions
    whose right context the end of the sequence cuts off), and returns `score_BTH` (kept where
    positive) in its aux. In names, S stands for the heads of all such layers, one after the other.
    """

    def __init__(self, model: nn.Module, options: Options) -> None:
        layers: list[Any] = [
            module
            for module in model.modules()
            if hasattr(module, "budget") and hasattr(module, "receptive_margin")
        ]
        self.options = options
        self.layers = layers
        self.margins: list[int] = [layer.receptive_margin for layer in layers]
        targets = [options.target_kept or layer.budget for layer in layers]
        self.targets: list[float] = [math.inf if b is None else b for b in targets]  # None = no cap
        self.heads: list[int] = []  # of each layer, known from the first scores on
        self.lambda_S: Tensor | None = None
        self.kept_S: dict[int, Tensor] = {}  # moving average by ceil(log2(length))
        self._pending: dict[int, list[Tensor]] = {}

    def begin_step(self, step: int) -> None:
        """Switch the routers of the layers on or off for step `step` (from 1).

        Off until `router_start` is done: while recall is still being learned, scores are learned
        too but nothing is evicted (see docs/semantics.md for how the reference differs).
        """
        for layer in self.layers:
            layer.router_on = step > self.options.router_start * self.options.steps

    def penalty(self, aux: Aux) -> Tensor | None:
        """Count the kept tokens of one micro-batch and return its L1 term, a scalar.

        The term is the mean over layers, batch, positions without the last m, and heads of
        lambda * relu(score). None when the model has no such layer, or when the sequences are
        too short to overflow the budget. Raises ValueError when a layer's scores are missing.
        """
        if not self.margins:
            return None
        scores = [layer["score_BTH"] for layer in aux if "score_BTH" in layer]
        if len(scores) != len(self.margins):
            raise ValueError(
                f"aux: found score_BTH of {len(scores)} layers, allowed: of all {len(self.margins)}"
            )
        length = scores[0].shape[1]
        if all(length - m <= b for m, b in zip(self.margins, self.targets, strict=True)):
            return None
        if self.lambda_S is None:
            self.heads = [score_BTH.shape[2] for score_BTH in scores]
            self.lambda_S = torch.zeros(sum(self.heads), device=scores[0].device)
        scores = [
            score_BTH[:, : length - m].float()
            for score_BTH, m in zip(scores, self.margins, strict=True)
        ]
        with torch.no_grad():
            counts = [(score_BTH > 0).sum(1).float().mean(0) for score_BTH in scores]
        self._pending.setdefault((length - 1).bit_length(), []).append(torch.cat(counts))
        lambdas = torch.split(self.lambda_S, self.heads)
        terms = [
            (lambda_H * score_BTH.relu()).mean()
            for lambda_H, score_BTH in zip(lambdas, scores, strict=True)
        ]
        return torch.stack(terms).mean()

    def end_step(self, step: int, reduce: Callable[[Tensor], Tensor] = lambda kept: kept) -> None:
        """Fold the counts of step `step` (from 1) into the averages; update lambda when it is due.

        `reduce` averages a tensor over the data-parallel ranks. Each rank's moving averages are
        its own; what lambda follows is their mean.
        """
        if not self.margins:
            return
        options = self.options
        rate = min(1.0, 2 / (1 + options.sparsity_update_every / 2))
        for bucket, counts in self._pending.items():
            new_S = torch.stack(counts).mean(0)
            old_S = self.kept_S.get(bucket)
            if old_S is None:
                old_S = torch.full_like(new_S, float(1 << bucket))  # starts as if all were kept
            self.kept_S[bucket] = torch.lerp(old_S, new_S, rate)
        self._pending.clear()
        due = step % options.sparsity_update_every == 0
        start = max(options.sparsity_start, options.router_start) * options.steps
        if due and step > start and self.lambda_S is not None:
            self._update(reduce(self._kept_S()))

    def _kept_S(self) -> Tensor:
        return torch.stack(list(self.kept_S.values())).amax(0)

    def _update(self, kept_S: Tensor) -> None:
        assert self.lambda_S is not None
        options = self.options
        target_S = torch.cat(
            [
                kept_S.new_full((heads,), float(target))
                for heads, target in zip(self.heads, self.targets, strict=True)
            ]
        )
        many_S = kept_S >= target_S
        few_S = kept_S <= options.sparsity_tolerate * target_S
        lambda_S = torch.where(many_S, self.lambda_S * options.sparsity_alpha, self.lambda_S)
        lambda_S = torch.where(few_S, lambda_S / options.sparsity_alpha_neg, lambda_S)
        lambda_S = lambda_S.clamp(max=options.sparsity_lambda_max)
        lambda_S = torch.where(lambda_S < options.sparsity_lambda_min, 0.0, lambda_S)
        restart_S = (lambda_S == 0) & ~few_S
        lambda_S = torch.where(restart_S, options.sparsity_lambda_min, lambda_S)
        if options.sparsity_release > 0:
            # Halving takes many updates; a head that lost most of its tokens needs relief now.
            released_S = kept_S <= options.sparsity_release * target_S
            lambda_S = torch.where(released_S, 0.0, lambda_S)
        self.lambda_S = lambda_S

    def report(self) -> dict[str, list[list[float]]]:
        """`kept` (tokens) and `lambda`, each a list a layer of a value a head; {} before any."""
        if self.lambda_S is None or not self.kept_S:
            return {}
        values = {"kept": self._kept_S(), "lambda": self.lambda_S}
        return {
            name: [head.tolist() for head in torch.split(value_S.cpu(), self.heads)]
            for name, value_S in values.items()
        }

    def state_tensors(self) -> dict[str, Tensor]:
        """Lambda, heads and moving averages, for safetensors; {} before any scores."""
        if self.lambda_S is None:
            return {}
        kept = {f"kept.{bucket}": value_S for bucket, value_S in self.kept_S.items()}
        return {"lambda": self.lambda_S, "heads": torch.tensor(self.heads), **kept}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` returned."""
        if tensors:
            self.heads = tensors["heads"].tolist()
            self.lambda_S = tensors["lambda"]
            self.kept_S = {
                int(key.removeprefix("kept.")): value_S
                for key, value_S in tensors.items()
                if key.startswith("kept.")
            }
