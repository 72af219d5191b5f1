"""Low-rank factors of an update, and sums of them over turns."""

from typing import NamedTuple

import torch


class Factors(NamedTuple):
    """W' = W - (eta / r) left right^T of one linear map: left [B, O, R], right [B, I, R].

    `eta` is a scalar. Source: construction 6.2 of our ProSG specification.
    """

    left_BOR: torch.Tensor
    right_BIR: torch.Tensor
    eta: torch.Tensor

    def squared_norm(self) -> torch.Tensor:
        """|dW|_F^2 of each sequence [B], without forming dW."""
        inner = (self.left_BOR.mT @ self.left_BOR) * (self.right_BIR.mT @ self.right_BIR)
        return (self.eta / self.left_BOR.shape[-1]).square() * inner.sum((-2, -1))

    def change(self) -> torch.Tensor:
        """W' - W of each sequence [B, O, I], in full."""
        return -(self.eta / self.left_BOR.shape[-1]) * (self.left_BOR @ self.right_BIR.mT)


Update = list[dict[str, Factors]]  # of every block, by target


def total(earlier: Factors, later: Factors, weight: float, rank: int | None) -> Factors:
    """Factors of `weight` times the earlier change plus the later one.

    The ranks add up; `rank` bounds the sum's, which is then the nearest matrix of that rank.
    """
    lefts = [
        factors.left_BOR * (scale * factors.eta / factors.left_BOR.shape[-1])
        for factors, scale in ((earlier, weight), (later, 1.0))
    ]
    left, right = torch.cat(lefts, -1), torch.cat([earlier.right_BIR, later.right_BIR], -1)
    if rank is not None and left.shape[-1] > rank:
        left, right = _truncated(left, right, rank)
    return Factors(left * left.shape[-1], right, torch.ones_like(later.eta))


def _truncated(
    left_BOR: torch.Tensor, right_BIR: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best approximation of left right^T, from the SVD of its small core."""
    q_left, r_left = torch.linalg.qr(left_BOR)
    q_right, r_right = torch.linalg.qr(right_BIR)
    u, s, vh = torch.linalg.svd(r_left @ r_right.mT)
    return q_left @ (u[..., :rank] * s[..., None, :rank]), q_right @ vh.mT[..., :rank]
