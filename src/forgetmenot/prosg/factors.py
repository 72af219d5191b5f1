"""Low-rank factors of an update, and sums of them over turns."""

from typing import NamedTuple

import torch


class Factors(NamedTuple):
    """W' = W - (eta / r) left right^T of one linear map: left [B, O, R], right [B, I, R].

    `eta` is a scalar. With an `age` (scalar, tokens read since the prompt) and a `half_life`
    (scalar, tokens) the change fades: token t has 2^(-t / half_life) of it. Source: construction
    6.2 and 6.6 of our ProSG specification.
    """

    left_BOR: torch.Tensor
    right_BIR: torch.Tensor
    eta: torch.Tensor
    age: torch.Tensor | None = None
    half_life: torch.Tensor | None = None

    def later(self, tokens: int) -> "Factors":
        """The factors after `tokens` more tokens; the same where they do not fade."""
        return self if self.age is None else self._replace(age=self.age + tokens)

    def faded(self, tokens: int) -> torch.Tensor | None:
        """What is left of the change at each of the next `tokens` tokens [T]; None: all of it."""
        if self.age is None or self.half_life is None:
            return None
        steps_T = torch.arange(tokens, device=self.age.device)
        return (-(self.age + steps_T) / self.half_life).exp2()

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
    left_now = earlier.faded(1)
    weights = (weight if left_now is None else weight * left_now[0], 1.0)
    lefts = [
        factors.left_BOR * (scale * factors.eta / factors.left_BOR.shape[-1])
        for factors, scale in zip((earlier, later), weights, strict=True)
    ]
    left, right = torch.cat(lefts, -1), torch.cat([earlier.right_BIR, later.right_BIR], -1)
    if rank is not None and left.shape[-1] > rank:
        left, right = _truncated(left, right, rank)
    return later._replace(
        left_BOR=left * left.shape[-1], right_BIR=right, eta=torch.ones_like(later.eta)
    )


def _truncated(
    left_BOR: torch.Tensor, right_BIR: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best approximation of left right^T, from the SVD of its small core."""
    q_left, r_left = torch.linalg.qr(left_BOR)
    q_right, r_right = torch.linalg.qr(right_BIR)
    u, s, vh = torch.linalg.svd(r_left @ r_right.mT)
    return q_left @ (u[..., :rank] * s[..., None, :rank]), q_right @ vh.mT[..., :rank]
