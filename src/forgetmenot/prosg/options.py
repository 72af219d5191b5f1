"""ProSG's options; plain data, importable without torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Options:
    """What a prompt leaves behind and how it acts (construction 6 of our ProSG specification).

    Generators of a low-rank update: g1 dense, g2 probes of a matrix state, g3 its SVD, g4 attention
    over all layers' states, g5 states at several points of the prompt (a method of its own: it sees
    more than the end state). Rivals under the same contract: static (factors that do not depend on
    the prompt, LoRA), frozen_read (a copy of the state that stays readable), offset (a generated
    state that is added at every step), wide (more feed-forward units, no memory of the prompt).
    """

    generator: Literal["g1", "g2", "g3", "g4", "g5", "static", "frozen_read", "offset", "wide"] = (
        "g1"
    )
    rank: int = 4  # r of the update of a weight
    width: int = 64  # m, hidden width of g1, g4 and offset
    shared: bool = False  # heads shared over blocks (their shapes must be equal)
    bottleneck: int | None = None  # width that the heads' maps pass through; null = full
    queries: int = 4  # g1, g4, offset: learned queries that read a matrix state
    checkpoints: int = 4  # g5: points of the prompt whose states are read
    reads: int | None = None  # frozen_read, offset: queries of a token; null = see `matched`
    matched: Literal["g1", "g2", "g3", "g4", "g5"] = "g1"  # rivals: with as many parameters as this
    target_mixer: str | None = None  # mixer whose linear maps change; null = the channel mixer
    targets: list[str] | None = None  # its linear maps, by name; null = up and down (key and value)
    target_blocks: list[int] | None = None  # blocks that receive an update; null = all
    step: Literal["learned", "fixed", "state"] = "learned"  # eta of a target; state = made from it
    step_init: float = 1.0  # eta at the start, or for good
    clip: float = 0.3  # largest |dW| / |W| at inference, per target
    clip_training: bool = False  # the same limit in training, so that inference holds no surprise
    half_life: float | None = None  # tokens after which half of the update is left; null = keep all
    turns: Literal["keep", "replace", "accumulate", "decay"] = "keep"  # at a later commit
    turn_decay: float = 0.5  # decay: factor on what earlier turns left, at each commit
    turn_rank: int | None = None  # accumulate, decay: largest rank of the sum; null = grows

    def __post_init__(self) -> None:
        for key in ("generator", "matched", "step", "turns"):
            allowed = type(self).__annotations__[key].__args__
            if getattr(self, key) not in allowed:
                shown = ", ".join(map(repr, allowed))
                raise ValueError(f"{key}: found {getattr(self, key)!r}, allowed: {shown}")
        for key in ("rank", "width", "queries", "checkpoints", "bottleneck", "reads", "turn_rank"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: found {value}, allowed: 1 or more")
        if self.targets is not None and not self.targets:
            raise ValueError("targets: found an empty list, allowed: names of linear maps, or null")
        if self.step == "state" and self.step_init <= 0:
            raise ValueError(f"step_init: found {self.step_init}, allowed with 'state': above 0")
        if self.half_life is not None and not (
            self.half_life > 0 and (self.generator.startswith("g") or self.generator == "static")
        ):
            raise ValueError(
                f"half_life: found {self.half_life} for {self.generator}; allowed: above 0, for "
                "low-rank factors; or null"
            )
        if self.clip <= 0:
            raise ValueError(f"clip: found {self.clip}, allowed: above 0")
        if not 0 <= self.turn_decay <= 1:
            raise ValueError(f"turn_decay: found {self.turn_decay}, allowed: 0 to 1")
        if self.turns in ("accumulate", "decay") and not self.generator.startswith("g"):
            raise ValueError(
                f"turns: found {self.turns!r}, allowed for {self.generator}: 'keep', 'replace'"
            )
