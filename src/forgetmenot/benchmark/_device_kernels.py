"""What a GPU runs in a call, by kernel, as torch's profiler saw it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Kernel:
    """One kernel's launches in a call, copies and fills counted as well, and their time (µs)."""

    name: str
    launches: int
    microseconds: float


def kernels(call: Callable[[], None]) -> list[Kernel]:
    """Every kernel of one call, the longest together first; nothing without a GPU."""
    if not torch.cuda.is_available():
        return []
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    found = [
        Kernel(event.key, event.count, float(event.self_device_time_total))
        for event in profiler.key_averages()
        if event.device_type.name == "CUDA"
    ]
    return sorted(found, key=lambda kernel: (-kernel.microseconds, kernel.name))
