"""The learning rate as a pure function of the step."""

import math

from forgetmenot.train.options import Options


def learning_rate(step: int, options: Options) -> float:
    """Rate of optimizer step `step` (1 to `options.steps`): linear warm-up, then cosine.

    The peak is reached at `warmup_steps` and `min_lr_ratio` times the peak at the last step
    (LTE reference recipe: cosine to 10 %).
    """
    if step <= options.warmup_steps:
        return options.learning_rate * step / options.warmup_steps
    progress = (step - options.warmup_steps) / (options.steps - options.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return options.learning_rate * (options.min_lr_ratio + (1 - options.min_lr_ratio) * cosine)
