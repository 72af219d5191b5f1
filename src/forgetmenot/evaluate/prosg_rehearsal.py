"""Rivals of an update: bringing the prompt back to a recurrent memory every so many tokens."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from forgetmenot.data.prosg.world import World
from forgetmenot.mixers.base import Turn, select_rows

MEMORIES = ("memory_BHVK", "memory_BHKV")


def is_recurrent(state: Any) -> bool:
    """Whether a model's state has a recurrent memory, and nothing that grows or slides."""
    layers = [getattr(layer, "_fields", ()) for layer in state.layers]
    memories = [fields for fields in layers if {"wkv", *MEMORIES} & set(fields)]
    caches = [fields for fields in layers if {"cache", "k_BHCD", "kv"} & set(fields)]
    return bool(memories) and not caches


class Refresh:
    """S <- (1 - rho) S + rho S_prompt (construction 6.7, rival 6).

    S is the memory proper; the inputs of the last token (token shift, convolution) stay as they
    are, as they belong to the text and not to the prompt. `floats`: what is kept for one sequence.
    """

    def __init__(self, kept: Any, every: int, share: float) -> None:
        """`kept`: the state after the prompt, a copy of its own. `share`: rho, between 0 and 1."""
        self.kept, self.every, self.share = kept, every, share
        memories = [
            part
            for layer in kept.layers
            for name in ("wkv", *MEMORIES)
            for part in _parts(getattr(layer, name, ()))
        ]
        self.floats = sum(part[0].numel() for part in memories)

    def __call__(self, state: Any) -> Any:
        """The blended state; a weight update stays as it is."""
        pairs = zip(state.layers, self.kept.layers, strict=True)
        return state._replace(layers=tuple(self._blended(now, then) for now, then in pairs))

    def _blended(self, now: Any, then: Any) -> Any:
        fields = getattr(now, "_fields", ())
        if "wkv" in fields:
            return now._replace(wkv=self._blended_wkv(now.wkv, then.wkv))
        for name in MEMORIES:
            if name in fields:
                new = torch.lerp(getattr(now, name), getattr(then, name), self.share)
                return now._replace(**{name: new})
        return now

    def _blended_wkv(self, now: Any, then: Any) -> Any:
        """RWKV-4's sums are a e^p and b e^p: these are blended, at a common exponent."""
        p_now, p_then = now.p + math.log(1 - self.share), then.p + math.log(self.share)
        p = torch.maximum(p_now, p_then)
        one, other = (p_now - p).exp(), (p_then - p).exp()
        return now._replace(a=now.a * one + then.a * other, b=now.b * one + then.b * other, p=p)


class Refeed:
    """The prompt is read again (construction 6.7, rival 7), each sequence its own.

    `floats`: tokens that are kept for one sequence, the most of them.
    """

    def __init__(
        self, model: Any, world: World, prompts: Sequence[str], every: int, device: str
    ) -> None:
        self.model, self.every = model, every
        rows = [world.encode(prompt) for prompt in prompts]
        lengths = np.array([len(row) for row in rows])
        # A state cannot be continued with padding, so prompts of one length go together.
        places = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
        ids = [np.stack([rows[n] for n in place]) for place in places]
        self.groups = [
            (torch.from_numpy(place).to(device), torch.from_numpy(part).to(device))
            for place, part in zip(places, ids, strict=True)
        ]
        self.floats = int(lengths.max())
        self.back_B = torch.from_numpy(np.argsort(np.concatenate(places))).to(device)

    def __call__(self, state: Any) -> Any:
        """The state after the prompts."""
        parts = [self.model(ids, state=select_rows(state, rows)).state for rows, ids in self.groups]
        return select_rows(joined(parts), self.back_B)


def _parts(memory: Any) -> Sequence[torch.Tensor]:
    return [memory] if isinstance(memory, torch.Tensor) else list(memory)


def joined(parts: Sequence[Any]) -> Any:
    """States of several batches as that of one batch; the inverse of `select_rows`.

    Raises ValueError where they differ in something that is not of one sequence.
    """
    first = parts[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(parts)) if first.dim() else first
    if isinstance(first, Turn):
        if len({part.count for part in parts}) > 1:
            raise ValueError("states: found different numbers of steps; allowed: one number")
        return copy.deepcopy(first)
    if isinstance(first, dict):
        return {key: joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        found = [joined(column) for column in zip(*parts, strict=True)]
        return type(first)(*found) if hasattr(first, "_fields") else type(first)(found)
    if any(part != first for part in parts):
        raise ValueError(f"states: found {list(parts)}; allowed: the same in all")
    return first
