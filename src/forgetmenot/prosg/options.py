"""ProSG's options; plain data, importable without torch."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Options:
    """The synthetic-gradient module (construction 6.2 of our ProSG specification)."""

    generator: Literal["g1"] = "g1"  # g1 = dense, from vector states
    rank: int = 4  # r of the update of a weight
    width: int = 64  # m, hidden width of the generator
    targets: list[str] = field(  # linear maps of a layer that receive an update, by name
        default_factory=lambda: ["key", "value"]
    )
    target_mixer: str = "rwkv4_channel"  # mixer whose linear maps are the targets
    clip: float = 0.3  # largest |dW| / |W| at inference, per target

    def __post_init__(self) -> None:
        for key in ("rank", "width"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: found {getattr(self, key)}, allowed: 1 or more")
        if not self.targets:
            raise ValueError("targets: found an empty list, allowed: names of linear maps")
        if self.clip <= 0:
            raise ValueError(f"clip: found {self.clip}, allowed: above 0")
