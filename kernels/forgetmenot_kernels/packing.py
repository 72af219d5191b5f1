"""Packed documents: one row of tokens with the documents' borders, and back to a padded batch.

Shape suffixes: N documents, T packed tokens, L tokens of the longest document.
"""

from itertools import pairwise
from typing import NamedTuple

import torch


class Packing(NamedTuple):
    """Where the documents of a packed row lie; all int64 on the device of the data.

    `row_T` and `place_T` are the document of each token and its place in it.
    """

    cu_seqlens: torch.Tensor  # [N + 1]: document n is the tokens from cu_seqlens[n] on
    lengths_N: torch.Tensor
    row_T: torch.Tensor
    place_T: torch.Tensor
    longest: int

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.lengths_N)

    @property
    def token_NL(self) -> torch.Tensor:
        """What is a token in the padded batch (bool); documents lie at the left."""
        places = torch.arange(self.longest, device=self.lengths_N.device)
        return places < self.lengths_N[:, None]


def make_packing(cu_seqlens: "torch.Tensor | Packing", total: int) -> Packing:
    """The packing of `total` tokens with document borders `cu_seqlens`, an integer [N + 1].

    Raises ValueError unless the borders rise strictly from 0 to `total`. Waits for the device,
    unless the packing was made before and is given itself.
    """
    if isinstance(cu_seqlens, Packing):
        if len(cu_seqlens.row_T) != total:
            raise ValueError(
                f"cu_seqlens: found those of {len(cu_seqlens.row_T)} tokens; allowed: of {total}"
            )
        return cu_seqlens
    borders = cu_seqlens.tolist() if cu_seqlens.dim() == 1 else []
    rising = all(a < b for a, b in pairwise(borders))
    integer = not (cu_seqlens.is_floating_point() or cu_seqlens.dtype == torch.bool)
    if not integer or len(borders) < 2 or borders[0] != 0 or borders[-1] != total or not rising:
        raise ValueError(
            f"cu_seqlens: found {cu_seqlens.tolist()} ({cu_seqlens.dtype}); "
            f"allowed: integers that rise strictly from 0 to {total}"
        )
    cu_seqlens = cu_seqlens.long()
    lengths_N = cu_seqlens.diff()
    rows = torch.arange(len(lengths_N), device=cu_seqlens.device)
    row_T = rows.repeat_interleave(lengths_N, output_size=total)
    place_T = torch.arange(total, device=cu_seqlens.device) - cu_seqlens[row_T]
    longest = max(b - a for a, b in pairwise(borders))
    return Packing(cu_seqlens, lengths_N, row_T, place_T, longest)


def pad(x_1T: torch.Tensor, packing: Packing, value: float = 0.0) -> torch.Tensor:
    """A packed row [1, T, ...] as a batch [N, L, ...], filled up on the right with `value`."""
    shape = (packing.documents, packing.longest, *x_1T.shape[2:])
    return x_1T.new_full(shape, value).index_put((packing.row_T, packing.place_T), x_1T[0])


def unpad(x_NL: torch.Tensor, packing: Packing) -> torch.Tensor:
    """The tokens of a right-padded batch [N, L, ...] as one packed row [1, T, ...]."""
    return x_NL[packing.row_T, packing.place_T][None]


def packing_of_mask(mask_BL: torch.Tensor) -> Packing:
    """The packing of a left-padded batch, a row a document; `x[mask]` are its tokens in order.

    Raises ValueError for padding that is not on the left, and for a row without a token.
    """
    if not bool((mask_BL[:, 1:] >= mask_BL[:, :-1]).all()):
        raise ValueError("mask: found padding after a token; allowed: left padding only")
    lengths_N = mask_BL.sum(1)
    if not bool(lengths_N.all()):
        raise ValueError("mask: found a row without a token; allowed: at least one token a row")
    borders = torch.cat((lengths_N.new_zeros(1), lengths_N.cumsum(0)))
    return make_packing(borders, int(borders[-1]))
