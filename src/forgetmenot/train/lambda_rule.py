"""How lambda follows the kept tokens (LTE specification, 2.3 (c))."""

import torch
from torch import Tensor

from forgetmenot.train.options import Options


def updated(lambda_S: Tensor, kept_S: Tensor, target_S: Tensor, options: Options) -> Tensor:
    """Lambda of each head [S] after an update, given its kept tokens and its target.

    Too many kept: times `sparsity_alpha`. At or below `sparsity_tolerate` of the target: divided
    by `sparsity_alpha_neg`. Between: as it is. Below the smallest value it becomes 0, and from 0
    it starts again with the smallest, which is also the rule of the first update.
    """
    many_S = kept_S >= target_S
    few_S = kept_S <= options.sparsity_tolerate * target_S
    next_S = torch.where(many_S, lambda_S * options.sparsity_alpha, lambda_S)
    next_S = torch.where(few_S, lambda_S / options.sparsity_alpha_neg, next_S)
    next_S = next_S.clamp(max=options.sparsity_lambda_max)
    next_S = torch.where(next_S < options.sparsity_lambda_min, 0.0, next_S)
    next_S = torch.where((next_S == 0) & ~few_S, options.sparsity_lambda_min, next_S)
    if options.sparsity_release > 0:
        # Halving takes many updates; a head that lost most of its tokens needs relief now.
        next_S = torch.where(kept_S <= options.sparsity_release * target_S, 0.0, next_S)
    return next_S
