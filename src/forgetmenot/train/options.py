"""The training options; plain data, importable without torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Options:
    """How one model is trained. Defaults are the LTE reference's recipe where it gives one.

    The recipe is the AdamW, cosine and clipping set of the reference's training configuration;
    the sparsity fields are its lambda controller; the prompted fields belong to ProSG, a
    from-scratch implementation of the method as the abstract describes it; the details are ours.
    Raises ValueError naming the key, what was found and what is allowed.
    """

    steps: int = 1000  # optimizer steps (ours; the 1.4B reference run takes 30,720)
    tokens_per_step: int = 4096  # tokens an optimizer step, over all ranks (reference: 1,048,576)
    accumulate: int = 1  # micro-batches a step and rank (reference: 16 at 1.4B on two GPUs)
    learning_rate: float = 3e-4  # peak AdamW rate (reference)
    min_lr_ratio: float = 0.1  # the cosine ends at this fraction of the peak (reference)
    warmup_steps: int = 0  # steps of linear warm-up (reference: 512 of 30,720; set it by scale)
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW moment decay rates (reference)
    eps: float = 1e-15  # AdamW's epsilon (reference)
    weight_decay: float = 0.1  # decoupled, on all parameters in one group (reference)
    clip: float = 1.0  # largest global gradient norm (reference)
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16 = autocast over fp32 weights (ours)
    log_every: int = 10  # steps between lines of curve.jsonl (ours)
    checkpoint_every: int = 100  # steps between checkpoints (ours; reference: 320)
    router_start: float = 0.0  # part of the steps in which LTE evicts nothing (reference: 0)
    router_freeze: float = 0.0  # part of the steps in which the router is frozen (reference: 0)
    # what holds kept tokens at the budget: an L1 weight (reference), or the scores' bias (ours)
    sparsity_rule: Literal["lambda", "quantile"] = "lambda"
    sparsity_start: float = 0.0  # part of the steps done before pressure starts (reference: 0)
    sparsity_alpha: float = 1.5  # factor on lambda when too many tokens are kept (reference)
    sparsity_alpha_neg: float = 2.0  # divisor of lambda when few enough are kept (reference)
    sparsity_update_every: int = 32  # steps between updates of lambda (reference)
    sparsity_tolerate: float = 0.95  # kept / target from here to 1 leaves lambda alone (reference)
    sparsity_lambda_min: float = 1e-9  # lambda's first value; below it lambda is 0 (reference)
    sparsity_lambda_max: float = 1.0  # lambda's largest value (reference)
    sparsity_release: float = 0.0  # kept / target at or below which lambda becomes 0 (ours)
    lambda_shared: Literal["head", "layer", "all"] = "head"  # one lambda for each (reference: head)
    target_kept: int | None = None  # kept tokens a head aimed at; null = the mixer's own budget
    lm_weight: float = 0.1  # ProSG lam_lm: weight of the loss on every body token (ours)
    prompt_weight: float = 0.1  # ProSG lam_p: weight of the loss on the prompt's tokens (ours)
    update_penalty: float = 1e-4  # ProSG lam_n: weight of the generated update's |dW|^2 (ours)
    sg_weight: float = 0.0  # ProSG lam_sg: weight of the distance to a true gradient (ours)
    sg_teacher: Literal["prompt", "response"] = "prompt"  # loss that the gradient is of (ours)
    sg_distance: Literal["cosine", "squared"] = "cosine"  # 1 - cosine, or |dG|^2 / |G|^2 (ours)
    rec_weight: float = 0.0  # ProSG lam_rec: weight of answering from the update alone (ours)
    kl_weight: float = 0.0  # ProSG lam_kl: weight of the distance to a base just told (ours)
    kl_window: int = 16  # tokens up to an answer that this base reads after the prompt (ours)
    state_gradient: bool = True  # the body's loss reaches the pass over the prompt (ours)
    base_start: float = 0.0  # part of the steps in which ProSG's base is frozen (ours)
    base_lr_ratio: float = 1.0  # learning rate of ProSG's base over the generator's (ours)

    def __post_init__(self) -> None:
        for key in (
            "steps",
            "tokens_per_step",
            "accumulate",
            "log_every",
            "checkpoint_every",
            "sparsity_update_every",
            "kl_window",
        ):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: found {getattr(self, key)}, allowed: 1 or more")
        for key in ("learning_rate", "eps", "clip"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key}: found {getattr(self, key)}, allowed: above 0")
        for key in (
            "min_lr_ratio",
            "router_start",
            "router_freeze",
            "sparsity_start",
            "sparsity_tolerate",
            "sparsity_release",
            "base_start",
        ):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}: found {getattr(self, key)}, allowed: 0 to 1")
        for key in ("sparsity_alpha", "sparsity_alpha_neg"):
            if getattr(self, key) <= 1:
                raise ValueError(f"{key}: found {getattr(self, key)}, allowed: above 1")
        for key in (
            "weight_decay",
            "lm_weight",
            "prompt_weight",
            "update_penalty",
            "sg_weight",
            "rec_weight",
            "kl_weight",
            "base_lr_ratio",
        ):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}: found {getattr(self, key)}, allowed: 0 or more")
        if not 0 < self.sparsity_lambda_min <= self.sparsity_lambda_max:
            raise ValueError(
                f"sparsity_lambda_min: found {self.sparsity_lambda_min}, "
                f"allowed: above 0, at most sparsity_lambda_max = {self.sparsity_lambda_max}"
            )
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"warmup_steps: found {self.warmup_steps}, allowed: 0 to steps - 1 = "
                f"{self.steps - 1}"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: found {self.betas}, allowed: two numbers in [0, 1)")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision: found {self.precision!r}, allowed: 'fp32', 'bf16'")
        if self.sparsity_rule not in ("lambda", "quantile"):
            raise ValueError(
                f"sparsity_rule: found {self.sparsity_rule!r}, allowed: 'lambda', 'quantile'"
            )
        if self.lambda_shared not in ("head", "layer", "all"):
            raise ValueError(
                f"lambda_shared: found {self.lambda_shared!r}, allowed: 'head', 'layer', 'all'"
            )
        for key, allowed in (
            ("sg_teacher", ("prompt", "response")),
            ("sg_distance", ("cosine", "squared")),
        ):
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key}: found {getattr(self, key)!r}, allowed: {allowed}")
        if self.target_kept is not None and self.target_kept < 1:
            raise ValueError(f"target_kept: found {self.target_kept}, allowed: null, 1 or more")
