"""Two ranks on a CPU: their own data, one model."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("data_parallel.py")


def test_two_ranks_see_different_data_and_end_with_one_model(tmp_path: Path) -> None:
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
            [sys.executable, str(SCRIPT), str(tmp_path)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate()[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    one, other = (load_file(tmp_path / f"rank-{rank}.safetensors") for rank in range(2))
    assert not torch.equal(one.pop("data"), other.pop("data"))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    assert len((tmp_path / "curve.jsonl").read_text().splitlines()) == 2
