"""Holding LTE's kept tokens at their budget by the bias of the scores (ours, not the paper's).

Lambda, the reference's lever, only presses: a head that the task itself drives below its budget
stays there, and one that is pressed overshoots (docs/semantics.md). Here the last bias of a head's
scorer belongs to the controller instead of the optimizer: minus the logit above which the head's
budget of tokens lies. What the router learns is the order of the tokens; how many are kept is no
matter of learning any more (and `count_held` takes it out of the scores' gradients). At inference
nothing changes: the bias is one more weight.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from forgetmenot.train.options import Options
from forgetmenot.train.sparsity import (
    LENGTHS,
    Aux,
    SparsityController,
    counted_positions,
    length_class,
)


class QuantileController(SparsityController):
    """Sets `keep_bias` of every layer with a budget after each step, from `sparsity_start` on.

    The aim is the middle of the band [`sparsity_tolerate` b, b]. Such a layer also exposes
    `keep_bias` [sets, 1], the bias that all logits of a head have, and `count_held`, and returns
    `logit_BTH` in its aux. Heads that share a scorer get the mean of their thresholds. Each class
    of lengths keeps its latest threshold, and the highest decides. They are not averaged over
    steps, as counts are: scores move fast, and a threshold that lags behind misses its count.
    """

    def __init__(self, model: nn.Module, options: Options) -> None:
        super().__init__(model, options)
        self.aim = (1 + options.sparsity_tolerate) / 2
        # the logits, without the bias, above which the budget of tokens lies; -inf: not known yet
        self.threshold_KS = torch.empty(0)
        self._sums_K2S: Tensor | None = None  # thresholds and their number in this step

    def begin_step(self, step: int) -> None:
        """As the other controller; also tell the layers when their count is held."""
        super().begin_step(step)
        for layer in self.layers:
            layer.count_held = self._is_past(step, self.options.sparsity_start)

    def drop_frozen(self, step: int) -> None:
        """Also forget the gradients of the biases, once they are the controller's."""
        super().drop_frozen(step)
        if self._is_past(step, self.options.sparsity_start):
            for layer in self.layers:
                layer.keep_bias.grad = None

    def penalty(self, aux: Aux) -> None:
        """Count the kept tokens and measure the thresholds of one micro-batch; there is no L1 term.

        The sequences that can overflow the budget count as one set, of the longest one's class.
        Raises ValueError as the other controller does.
        """
        if super().penalty(aux) is None:
            return
        logits, lengths_N = self._sequences(aux, "logit_BTH")
        found = []
        for layer, logit_NTH, target, m in zip(
            self.layers, logits, self.targets, self.margins, strict=True
        ):
            overflows_N, counted_NT = counted_positions(lengths_N, logit_NTH.shape[1], m, target)
            number = overflows_N.sum()
            keep = torch.where(number > 0, self.aim * target * number, 1.0)
            logit_NTH = logit_NTH.detach().masked_fill(~counted_NT[..., None], -torch.inf)
            threshold_H = _threshold(logit_NTH, keep) - layer.keep_bias.detach()[:, 0]
            seen_H = (number > 0).expand_as(threshold_H)
            found.append(torch.stack((torch.where(seen_H, threshold_H, 0.0), seen_H.float())))
        if self._sums_K2S is None:
            self._sums_K2S = torch.zeros(LENGTHS, 2, sum(self.heads), device=lengths_N.device)
        class_1 = length_class(lengths_N.amax()[None])
        self._sums_K2S.index_add_(0, class_1, torch.cat(found, 1)[None])

    def end_step(self, step: int, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> None:
        """Take over the thresholds and counts of step `step`; set the biases."""
        if self._sums_K2S is not None:
            sum_KS, number_KS = reduce(self._sums_K2S).unbind(1)
            self._sums_K2S = None
            if not len(self.threshold_KS):
                self.threshold_KS = torch.full_like(sum_KS, -torch.inf)
            self.threshold_KS = torch.where(number_KS > 0, sum_KS / number_KS, self.threshold_KS)
        super().end_step(step, reduce)

    @torch.no_grad()
    def _control(self, step: int) -> None:
        thresholds: dict[nn.Parameter, list[Tensor]] = {}
        for layer, threshold_H in zip(
            self.layers, self.threshold_KS.amax(0).split(self.heads), strict=True
        ):
            thresholds.setdefault(layer.keep_bias, []).append(threshold_H)
        for bias, of_layers in thresholds.items():
            bias_H = -torch.stack(of_layers).mean(0)
            if len(bias) == 1:
                bias_H = bias_H.mean(0, keepdim=True)
            # infinite: no sequence could overflow so far
            bias.copy_(torch.where(bias_H.isfinite(), bias_H, bias[:, 0])[:, None])

    def _levers(self) -> dict[str, Tensor]:
        pairs = zip(self.layers, self.heads, strict=True)
        return {"bias": torch.cat([layer.keep_bias.detach()[:, 0].expand(h) for layer, h in pairs])}

    def state_tensors(self) -> dict[str, Tensor]:
        """Also the thresholds."""
        if not len(self.threshold_KS):
            return super().state_tensors()
        return {**super().state_tensors(), "threshold": self.threshold_KS}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` returned."""
        super().load_state_tensors(tensors)
        if "threshold" in tensors:
            self.threshold_KS = tensors["threshold"]


def _threshold(logit_NTH: Tensor, keep: Tensor) -> Tensor:
    """The value [H] that about `keep` (a scalar) of all N x T logits of a head are above."""
    ordered_PH = logit_NTH.flatten(0, 1).sort(0, descending=True).values
    rank = keep.round().long()
    # Between two neighbours, so that rounding the bias does not decide about either of them.
    return (ordered_PH[rank - 1] + ordered_PH[rank]) / 2
