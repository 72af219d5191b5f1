"""One rank of two: train the stand-in model and write the weights and the data it saw.

Usage: data_parallel.py <folder>, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from train_stub import CountingStream, StubModel, small_options

from forgetmenot.train import setup
from forgetmenot.train.loop import Trainer
from forgetmenot.train.mixture import Mixture, Source


def run(folder: Path) -> None:
    """Train for a few steps and save this rank's end state."""
    torch.manual_seed(0)
    sources = [
        Source("plain", CountingStream([4, 16]), 1.0),
        Source("prompted", CountingStream([8], prompt=5), 1.0),
    ]
    accelerator = setup.accelerator("cpu", "fp32")
    trainer = Trainer(
        StubModel(),
        Mixture(sources, seed=3),
        small_options(steps=8, accumulate=2),
        accelerator=accelerator,
        work=folder / "work",
        identity="run",
        log=lambda _metrics, _step: None,
    )
    trainer.run(folder)
    tensors = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    first = trainer.mixture.batch(1, 8, rank=accelerator.process_index).arrays["input_ids"]
    assert trainer.controller.lambda_S is not None
    tensors |= {"data": torch.from_numpy(first), "lambda": trainer.controller.lambda_S}
    save_file(tensors, folder / f"rank-{accelerator.process_index}.safetensors")
    accelerator.end_training()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
