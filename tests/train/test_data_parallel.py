"""Two ranks on a CPU: their own data, one model."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from data_parallel import ACCUMULATE, Joint, make_trainer
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("data_parallel.py")


def _curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a run on two ranks wrote."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "CUDA_VISIBLE_DEVICES": "",  # two ranks need not find two GPUs
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate()[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    return folder


def test_two_ranks_see_different_data_and_end_with_one_model(two_ranks: Path) -> None:
    one, other = (load_file(two_ranks / f"rank-{rank}.safetensors") for rank in range(2))
    assert not torch.equal(one.pop("data"), other.pop("data"))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_two_ranks_are_one_with_the_joint_batch(two_ranks: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, Joint, accumulate=2 * ACCUMULATE)
    trainer.run(tmp_path)
    joint, both = _curve(tmp_path), _curve(two_ranks)
    assert len(joint) == len(both) == trainer.options.steps
    lambdas = set()
    for one, two in zip(joint, both, strict=True):
        assert one.keys() == two.keys()
        for name in ("kept", "lambda"):
            for one_H, two_H in zip(one.get(name, []), two.get(name, []), strict=True):
                assert two_H == pytest.approx(one_H, rel=1e-5), (name, one["step"])
        lambdas |= {weight for head in one.get("lambda", []) for weight in head}
    assert len(lambdas) > 3
    ranks = load_file(two_ranks / "rank-0.safetensors")
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(ranks[name], value, rtol=1e-4, atol=1e-5)
