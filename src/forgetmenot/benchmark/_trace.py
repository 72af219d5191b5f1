"""What one call allocates and copies, read from a trace of torch's profiler."""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

MEMORY = "[memory]"
BYTES = {
    "double": 8,
    "float": 4,
    "c10::Half": 2,
    "c10::BFloat16": 2,
    "long int": 8,
    "int": 4,
    "short int": 2,
    "signed char": 1,
    "unsigned char": 1,
    "bool": 1,
}


@dataclass(frozen=True)
class Touch:
    """Operators of one name and the most bytes that each allocates or copies at once.

    `name` is the outermost operator, then the one inside it that does it.
    """

    name: str
    bytes: int
    times: int


@dataclass(frozen=True)
class Trace:
    """One call: growth of the device's memory (bytes), at its peak and at the end, and operators.

    `touches` has those that allocate or copy anything, the largest first. Reading is no touch, and
    neither is writing in place into a part of a tensor.
    """

    peak: int
    net: int
    touches: list[Touch]


def record(call: Callable[[], None], device: str) -> Trace:
    """Trace one call on `device` ("cpu" or "cuda")."""
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with profile(activities=activities, profile_memory=True, record_shapes=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return read(events, int(device == "cuda"))


def read(events: list[dict[str, Any]], device_type: int) -> Trace:
    """The summary of a trace's events; `device_type` is 0 for the CPU's memory, 1 for a GPU's."""
    wanted = [
        event
        for event in events
        if event.get("cat") == "cpu_op"
        or (event["name"] == MEMORY and event["args"]["Device Type"] == device_type)
    ]
    # An operator before what happens inside it.
    wanted.sort(key=lambda event: (event["ts"], -event.get("dur", 0)))
    level = peak = 0
    running: list[dict[str, Any]] = []  # operators nest: the outermost first
    largest: dict[int, tuple[int, str]] = {}  # of each outermost operator
    for event in wanted:
        while running and event["ts"] >= running[-1]["ts"] + running[-1]["dur"]:
            running.pop()
        if event["name"] == MEMORY:
            size = event["args"]["Bytes"]
            level += size
            peak = max(peak, level)
        else:
            running.append(event)
            size = _copied(event)
        if running and size > 0:
            outer, inner = running[0], running[-1]["name"]
            name = outer["name"] if inner == outer["name"] else f"{outer['name']} > {inner}"
            largest[id(outer)] = max(largest.get(id(outer), (0, "")), (size, name))
    times = Counter(largest.values())
    touches = [Touch(name, size, times[size, name]) for size, name in times]
    return Trace(peak, level, sorted(touches, key=lambda t: (-t.bytes, t.name)))


def _copied(op: dict[str, Any]) -> int:
    """Bytes that an operator copies into a tensor or a view of one."""
    if op["name"] != "aten::copy_":
        return 0
    return BYTES.get(op["args"]["Input type"][0], 8) * math.prod(op["args"]["Input Dims"][0])
