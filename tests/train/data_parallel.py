"""Train the stand-in model on one rank, or on one of two; write the weights and the data it saw.

Usage: data_parallel.py <folder>, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from train_stub import CountingStream, StubModel, small_options

from forgetmenot.train import setup
from forgetmenot.train.loop import Trainer
from forgetmenot.train.mixture import Batch, Mixture, Source

ACCUMULATE = 2


class Joint(Mixture):
    """The batches of two ranks, as micro-batches of one."""

    def batch(self, step: int, tokens: int, *, micro: int = 0, rank: int = 0) -> Batch:
        rank, micro = divmod(micro, ACCUMULATE)
        return super().batch(step, tokens, micro=micro, rank=rank)


def make_trainer(folder: Path, mixture: type[Mixture], **options: Any) -> Trainer:
    """A trainer without dropout, whose sequences differ in length between ranks."""
    torch.manual_seed(0)
    model = StubModel()
    model.dropout.p = 0.0
    sources = [
        Source("plain", CountingStream([4, 16]), 1.0),
        Source("prompted", CountingStream([8], prompt=5), 1.0),
    ]
    changes = {"steps": 24, "log_every": 1, "router_freeze": 0.25, "sparsity_alpha": 3.0, **options}
    return Trainer(
        model,
        mixture(sources, seed=3),
        small_options(tokens_per_step=128, **changes),
        accelerator=setup.accelerator("cpu", "fp32"),
        work=folder / "work",
        identity="run",
        log=lambda _metrics, _step: None,
    )


def run(folder: Path) -> None:
    """Train for a few steps and save this rank's end state."""
    trainer = make_trainer(folder, Mixture, accumulate=ACCUMULATE)
    trainer.run(folder)
    rank = trainer.accelerator.process_index
    tensors = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    first = trainer.mixture.batch(1, 8, rank=rank).arrays["input_ids"]
    tensors |= {"data": torch.from_numpy(first)}
    tensors |= {f"sparsity.{n}": t for n, t in trainer.controller.state_tensors().items()}
    save_file(tensors, folder / f"rank-{rank}.safetensors")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
