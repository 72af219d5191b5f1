"""The controllers that hold LTE's kept tokens at their budget (LTE specification, 2.3).

`sparsity_rule: lambda`: one lambda a layer and head weighs an L1 term on the positive scores, and
follows the number of tokens that the head keeps. `quantile` (quantile_rule.py, ours): the bias of
the scores does. Lambda and the moving averages are tensors, saved in checkpoints.

With sequences of one length the first is the reference's rule. With mixed lengths (or packed
documents), which the reference does not have, two things are ours:

- A sequence that cannot overflow the budget (T - m <= target) is neither counted nor pressed:
  nothing has to be evicted there.
- Kept tokens are counted, not scaled, in a moving average for each power of two of the length;
  lambda follows the largest of them. So the budget holds at the length where it is tightest,
  whether the share kept falls with the length or not, and however often that length is drawn:
  a count weighs as much as the steps since the last one of its length.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from forgetmenot.train import lambda_rule
from forgetmenot.train.options import Options
from forgetmenot_kernels.packing import make_packing, pad

Aux = list[dict[str, Tensor]]
LENGTHS = 32  # classes of lengths: class n has the lengths above 2**(n - 1), up to 2**n


class SparsityController:
    """L1 pressure and lambda updates for the layers of `model` that have an eviction budget.

    Such a layer exposes `budget` (tokens, None = no cap), `receptive_margin` (m, positions whose
    right context the end of the sequence cuts off) and `scorer` (the router's parameters), and
    returns `score_BTH` (kept where positive) in its aux; and `cu_seqlens` [N + 1], if the row is of
    packed documents. Shape suffixes: S heads of all such layers, one after the other; K classes of
    lengths; C what is counted (kept tokens, length, sequences); N sequences.
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
        self.kept_KS = torch.empty(0)  # moving averages, 0 before a sequence of that length
        self.last_KS = torch.empty(0)  # step of the last such sequence, 0 = none yet
        self._step_KCS: Tensor | None = None  # sums over the sequences of this step

    def begin_step(self, step: int) -> None:
        """Switch the routers of the layers on or off for step `step` (from 1).

        Off until `router_start` is done: nothing is evicted, but scores are learned.
        """
        for layer in self.layers:
            layer.router_on = self._is_past(step, self.options.router_start)

    def drop_frozen(self, step: int) -> None:
        """Forget the gradients of the routers until `router_freeze` is done.

        Called before clipping: without a gradient the optimizer leaves a parameter alone, weight
        decay included. (Turning `requires_grad` off and on is more than data parallelism bears.)
        """
        if not self._is_past(step, self.options.router_freeze):
            for layer in self.layers:
                layer.scorer.zero_grad(set_to_none=True)

    def _is_past(self, step: int, part: float) -> bool:
        # Rounded, so that n / steps means n steps.
        return step > round(part * self.options.steps)

    def penalty(self, aux: Aux) -> Tensor | None:
        """Count the kept tokens of one micro-batch and return its L1 term, a scalar.

        The term is the mean over layers, batch, positions without the last m, and heads of
        lambda * relu(score); over the sequences that can overflow the budget, 0 when there are
        none. None when the model has no such layer. Raises ValueError when a layer's scores are
        missing, or for borders of documents that do not fit.
        """
        if not self.layers:
            return None
        scores, lengths_N = self._sequences(aux, "score_BTH")
        if self.lambda_S is None:
            self.heads = [score_NTH.shape[2] for score_NTH in scores]
            self.lambda_S = torch.zeros(sum(self.heads), device=lengths_N.device)
            self.kept_KS = self.lambda_S.new_zeros(LENGTHS, sum(self.heads))
            self.last_KS = torch.zeros_like(self.kept_KS)

        counts, terms = [], []
        for score_NTH, lambda_H, m, target in zip(
            scores, self.lambda_S.split(self.heads), self.margins, self.targets, strict=True
        ):
            overflows_N, counted_NT = counted_positions(lengths_N, score_NTH.shape[1], m, target)
            score_NTH = score_NTH.relu().masked_fill(~counted_NT[..., None], 0.0)
            terms.append((lambda_H * score_NTH).sum((0, 1)).mean() / counted_NT.sum().clamp(min=1))
            kept_NH = (score_NTH.detach() > 0).sum(1)
            length_NH = (lengths_N * overflows_N)[:, None].expand_as(kept_NH)
            one_NH = overflows_N[:, None].expand_as(kept_NH)
            counts.append(torch.stack((kept_NH, length_NH, one_NH), 1))
        if self._step_KCS is None:
            self._step_KCS = self.lambda_S.new_zeros(LENGTHS, 3, sum(self.heads))
        # Sums of whole numbers: exact in any order.
        self._step_KCS.index_add_(0, length_class(lengths_N), torch.cat(counts, 2).float())
        return torch.stack(terms).mean()

    def _sequences(self, aux: Aux, name: str) -> tuple[list[Tensor], Tensor]:
        """What every layer calls `name`, float32 [N, T, H], and the lengths [N] of the sequences.

        Raises ValueError when a layer lacks it, or for borders of documents that do not fit.
        """
        found = [layer for layer in aux if name in layer]
        if len(found) != len(self.layers):
            raise ValueError(
                f"aux: found {name} of {len(found)} layers, allowed: of all {len(self.layers)}"
            )
        values = [layer[name].float() for layer in found]
        rows, time, _ = values[0].shape
        if "cu_seqlens" not in found[0]:
            return values, torch.full((rows,), time, device=values[0].device)
        packing = make_packing(found[0]["cu_seqlens"], time)
        # The zeros that fill a row up are never counted.
        return [pad(value_BTH, packing) for value_BTH in values], packing.lengths_N

    def end_step(self, step: int, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> None:
        """Fold the counts of step `step` (from 1) into the averages; update lambda when it is due.

        `reduce` averages a tensor over the data-parallel ranks: the averages, and with them lambda,
        are those of the joint batch and the same on every rank at every step.
        """
        if self._step_KCS is None:
            return
        kept_KS, length_KS, number_KS = reduce(self._step_KCS).unbind(1)
        self._step_KCS = None
        seen_KS = number_KS > 0
        number_KS = number_KS.clamp(min=torch.finfo().tiny)  # below 1 on average over many ranks
        # The average starts at the length, as if all tokens were kept.
        old_KS = torch.where(self.last_KS == 0, length_KS / number_KS, self.kept_KS)
        new_KS = torch.lerp(old_KS, kept_KS / number_KS, self._weight(step, self.last_KS))
        self.kept_KS = torch.where(seen_KS, new_KS, self.kept_KS)
        self.last_KS = torch.where(seen_KS, float(step), self.last_KS)
        if self._is_past(step, self.options.sparsity_start):
            self._control(step)

    def _weight(self, step: int, last_KS: Tensor) -> Tensor:
        """Weight of what step `step` brings in an average whose last value is of step `last_KS`."""
        rate = min(1.0, 2 / (1 + self.options.sparsity_update_every / 2))
        return 1 - (1 - rate) ** (step - last_KS)

    def _control(self, step: int) -> None:
        """Let lambda follow the averages when its update is due."""
        if step % self.options.sparsity_update_every:
            return
        assert self.lambda_S is not None
        heads = zip(self.targets, self.heads, strict=True)
        target_S = self.lambda_S.new_tensor([b for b, count in heads for _ in range(count)])
        kept_S = self._shared(self.kept_KS.amax(0))
        self.lambda_S = lambda_rule.updated(
            self.lambda_S, kept_S, self._shared(target_S), self.options
        )

    def _shared(self, x_S: Tensor) -> Tensor:
        """The mean over the heads that share a lambda, at each of them."""
        if self.options.lambda_shared == "head":
            return x_S
        groups = x_S.split(self.heads) if self.options.lambda_shared == "layer" else [x_S]
        return torch.cat([x_G.mean().expand_as(x_G) for x_G in groups])

    def report(self) -> dict[str, list[list[float]]]:
        """`kept` (tokens) and what sets it: each a value a layer and head; {} before any."""
        if self.lambda_S is None or not bool(self.last_KS.any()):
            return {}
        values = {"kept": self.kept_KS.amax(0), **self._levers()}
        return {
            name: [head.tolist() for head in torch.split(value_S.cpu(), self.heads)]
            for name, value_S in values.items()
        }

    def _levers(self) -> dict[str, Tensor]:
        """What the controller sets, a value a head, by its name in the curve."""
        assert self.lambda_S is not None
        return {"lambda": self.lambda_S}

    def state_tensors(self) -> dict[str, Tensor]:
        """Lambda, heads and moving averages, for safetensors; {} before any scores."""
        if self.lambda_S is None:
            return {}
        heads = torch.tensor(self.heads)
        kept = {"kept": self.kept_KS, "last": self.last_KS}
        return {"lambda": self.lambda_S, "heads": heads, **kept}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` returned."""
        if tensors:
            self.heads = tensors["heads"].tolist()
            self.lambda_S = tensors["lambda"]
            self.kept_KS, self.last_KS = tensors["kept"], tensors["last"]


def counted_positions(
    lengths_N: Tensor, time: int, margin: int, target: float
) -> tuple[Tensor, Tensor]:
    """Which sequences [N] can overflow the target, and which of their positions [N, T] count."""
    overflows_N = lengths_N - margin > target
    place_T = torch.arange(time, device=lengths_N.device)
    return overflows_N, (place_T < (lengths_N - margin)[:, None]) & overflows_N[:, None]


def length_class(lengths_N: Tensor) -> Tensor:
    """The class of each length: n for those above 2**(n - 1), up to 2**n."""
    return torch.frexp((lengths_N - 1).float()).exponent
