"""Running means of metrics, kept on the device so that no step waits for the host."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Means:
    """Sums and counts by name.

    They travel through checkpoints, so that no line of the curve depends on where a run was
    interrupted.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Count one value (a scalar tensor) for each name."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.double()
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means and start again."""
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums.clear()
        self.counts.clear()
        return means

    def restore(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
        """Continue from saved `sums` and `counts`."""
        self.sums = {name: torch.as_tensor(total) for name, total in sums.items()}
        self.counts = dict(counts)
