"""Reading what a prompt left in an RNN's state (construction 6.1).

A state is known by its fields, not by its class, so that a job's code does not depend on backbones
that it does not use. Further suffixes: P parts, K key width, V value width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

EPS = 1e-12  # of the mean square of a head's matrix


class Read(NamedTuple):
    """Read-out of one block, float32 or wider: vectors [B, P, D], a value-first matrix, or both.

    A matrix [B, H, V, K] has a root mean square of 1 in every head.
    """

    vectors_BPD: torch.Tensor | None = None
    matrix_BHVK: torch.Tensor | None = None

    def tensors(self) -> list[torch.Tensor]:
        """What is there."""
        return [part for part in self if part is not None]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Read":
        """The read-out with `change` done to what is there."""
        return Read(*(None if part is None else change(part) for part in self))


class Layout(NamedTuple):
    """Shape of a block's read-out, without the batch; zeros for what is not there."""

    parts: int = 0
    width: int = 0
    heads: int = 0
    value: int = 0
    key: int = 0


def read_state(layers: tuple[Any, ...]) -> list[Read]:
    """The read-out of every block of a `LanguageModel`'s state (token and channel mixer in turns).

    RWKV-4: [a / b; log b + p; x_att; x_ffn]. a / b is the decayed mean of the values, log b + p the
    log of its mass: both finite, unlike raw a and b. RWKV-7: the matrix, [x_att; x_ffn]. RetNet and
    Gated DeltaNet: the matrix. Raises TypeError for the state of another backbone.
    """
    return [
        _read(token, channel) for token, channel in zip(layers[0::2], layers[1::2], strict=True)
    ]


def layout_of(reads: list[Read]) -> Layout:
    """The layout that all blocks have in common. Raises ValueError when they differ."""
    found = {_layout(read) for read in reads}
    if len(found) != 1:
        shown = "; ".join(str(layout) for layout in sorted(found))
        raise ValueError(f"read-out: found {shown or 'no blocks'}; allowed: one layout in all")
    return found.pop()


def unit_heads(matrix_BHVK: torch.Tensor) -> torch.Tensor:
    """Per-head RMS normalisation: norms differ by orders of magnitude between heads and layers."""
    return matrix_BHVK * (matrix_BHVK.square().mean((-2, -1), keepdim=True) + EPS).rsqrt()


def wide(x: torch.Tensor) -> torch.Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _read(token: Any, channel: Any) -> Read:
    fields = getattr(token, "_fields", ())
    shifts = [state.x_BD for state in (token, channel) if hasattr(state, "x_BD")]
    if "wkv" in fields:
        a, b, p = (wide(x) for x in token.wkv)
        return Read(torch.stack([a / b, b.log() + p, *(wide(x) for x in shifts)], 1))
    if "memory_BHVK" in fields:
        matrix_BHVK = token.memory_BHVK
    elif "memory_BHKV" in fields:
        matrix_BHVK = token.memory_BHKV.mT
    else:
        raise TypeError(
            f"state: found {type(token).__module__}; allowed: a recurrent state with the field "
            "wkv, memory_BHVK or memory_BHKV"
        )
    vectors_BPD = torch.stack([wide(x) for x in shifts], 1) if shifts else None
    return Read(vectors_BPD, unit_heads(wide(matrix_BHVK)))


def _layout(read: Read) -> Layout:
    parts, width = (0, 0) if read.vectors_BPD is None else read.vectors_BPD.shape[1:]
    heads, value, key = (0, 0, 0) if read.matrix_BHVK is None else read.matrix_BHVK.shape[1:]
    return Layout(parts, width, heads, value, key)
