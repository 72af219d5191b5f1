"""A trainer around the stand-in model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from train_stub import CountingStream, StubModel, small_options

from forgetmenot.train.loop import Trainer
from forgetmenot.train.mixture import Mixture, Source
from forgetmenot.train.options import Options


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Build a trainer from a fixed initialisation; equal arguments give equal runs."""

    def make(
        work: str = "work",
        options: Options | None = None,
        *,
        sources: list[Source] | None = None,
        log: Callable[[dict[str, float], int], None] = lambda _metrics, _step: None,
        identity: str = "run",
        prepare: Callable[[nn.Module], None] = lambda _model: None,
    ) -> Trainer:
        torch.manual_seed(0)
        model = StubModel()
        prepare(model)
        return Trainer(
            model,
            Mixture(sources or [Source("count", CountingStream([4, 8, 16]), 1.0)], seed=3),
            options or small_options(),
            accelerator=Accelerator(cpu=True),
            work=tmp_path / work,
            identity=identity,
            log=log,
        )

    return make
