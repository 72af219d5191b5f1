"""Telling a model which tokens a later question needs, for the eviction policy `oracle`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Oracle(nn.Module):
    """What one layer has been told about the tokens of the call in progress; no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.keep_BL: torch.Tensor | None = None

    def score(self, position_BL: torch.Tensor, starts: bool) -> torch.Tensor:
        """1 for tokens to keep, else 0: [B, L, 1], float32. A continuation untold keeps nothing.

        Raises ValueError when sequences start untold, or when what was told has another shape.
        """
        if self.keep_BL is None:
            if starts:
                raise ValueError(
                    "oracle: found no word on which tokens to keep; allowed: calls inside "
                    "`with needed(model, keep_BL)` (forgetmenot.mixers.eviction_oracle)"
                )
            return torch.zeros_like(position_BL, dtype=torch.float32)[..., None]
        if self.keep_BL.shape != position_BL.shape:
            found, allowed = tuple(self.keep_BL.shape), tuple(position_BL.shape)
            raise ValueError(f"keep: found shape {found}; allowed: {allowed}, as the call's tokens")
        return self.keep_BL.to(position_BL.device, torch.float32)[..., None]


@contextmanager
def needed(model: nn.Module, keep_BL: torch.Tensor) -> Iterator[None]:
    """For the calls inside, `keep_BL` says which of the tokens given are worth keeping.

    All layers of `model` with the policy `oracle` are told; a model without one stays as it is.

    Args:
        model: a language model or a mixer.
        keep_BL: bool, of the shape of the tokens that the layers see: [B, L], or the packed row
            [1, T] beside cu_seqlens and, as `keep_BL[mask_BL][None]`, beside a mask.

    Raises:
        TypeError: `keep_BL` is not bool.
    """
    if keep_BL.dtype != torch.bool:
        raise TypeError(f"keep: found {keep_BL.dtype}; allowed: torch.bool")
    oracles = [module for module in model.modules() if isinstance(module, Oracle)]
    before = [oracle.keep_BL for oracle in oracles]
    for oracle in oracles:
        oracle.keep_BL = keep_BL
    try:
        yield
    finally:
        for oracle, keep in zip(oracles, before, strict=True):
            oracle.keep_BL = keep
