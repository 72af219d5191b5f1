"""Launches in order, compiled side by side before: with made-up kernels that note what is done to
them, and with the gated delta rule's, compiled for Hopper without a GPU.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from forgetmenot_kernels import launching
from forgetmenot_kernels.launching import KernelLaunch, launch_all

DEVICE = 77  # no real one, so that nothing compiled here is ever launched
here = threading.local()


class Device:
    """What a `with torch.cuda.device(index)` does."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __enter__(self) -> None:
        here.device = self.index

    def __exit__(self, *error: object) -> None:
        del here.device


class Driver:
    """Triton's view of a Hopper GPU, as far as compiling needs one; `log` has what it launches."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 227 * 1024},
            load_binary=lambda *args: (1, 1, 0, 0, 1024),
        )

    def get_current_device(self) -> int:
        return DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_device_interface(self) -> SimpleNamespace:
        return SimpleNamespace(device=Device)

    def launcher_cls(self, src: Any, metadata: Any) -> Callable[..., None]:
        self.log.append(f"prepare {src.name} on {here.device}")
        return lambda *args: self.log.append(src.name)


class Kernel(triton.JITFunction):
    """Notes in `log` what is done to it; compiling it calls `compiling` first."""

    def __init__(self, name: str, log: list[str], compiling: Callable[[], object] = int) -> None:
        self.name, self.log, self.compiling, self.fn = name, log, compiling, object()

    def run(self, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> Any:
        given = f"{self.name} {grid} {args} {options}"
        if not warmup:
            return self.log.append(f"launch {given}")
        self.compiling()
        self.log.append(f"compile {given} on {here.device}")
        return Compiled(self)


class Compiled:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    @property
    def run(self) -> None:
        self.kernel.log.append(f"prepare {self.kernel.name} on {here.device}")


class Interpreted:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.fn = name, log, object()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **options: self.log.append(self.name)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Triton's driver, in a process that may use three cores and has compiled nothing."""
    driver = Driver()
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(launching, "_compiled", set())
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    return driver


def launch(kernel: Any) -> KernelLaunch:
    return KernelLaunch(kernel, (3, 2), (1, 2.0), {"WIDTH": 64})


GIVEN = "(3, 2) (1, 2.0) {'WIDTH': 64}"


def test_all_are_compiled_at_once_and_then_launched_in_order(driver: Driver) -> None:
    log: list[str] = []
    together = threading.Barrier(3, timeout=60)  # breaks unless three threads wait at once
    kernels = [Kernel(name, log, together.wait) for name in "cab"]
    launches = [launch(kernel) for kernel in kernels]
    launch_all(launches, "first")
    before = [
        f"{what} on {DEVICE}" for k in "abc" for what in (f"compile {k} {GIVEN}", f"prepare {k}")
    ]
    launched = [f"launch {name} {GIVEN}" for name in "cab"]
    assert sorted(log[:6]) == sorted(before)
    assert log[6:] == launched
    for name in "abc":
        assert log.index(f"compile {name} {GIVEN} on {DEVICE}") < log.index(
            f"prepare {name} on {DEVICE}"
        )
    log.clear()
    launch_all(launches, "first")
    assert log == launched
    log.clear()
    launch_all(launches, "second")
    assert sorted(log[:6]) == sorted(before)


def test_other_kernels_of_the_same_variant_are_compiled(driver: Driver) -> None:
    log: list[str] = []
    for names in ("ab", "cd"):
        launch_all([launch(Kernel(name, log)) for name in names], "variant")
    assert [line.split()[1] for line in log if line.startswith("launch")] == list("abcd")
    assert sorted(line.split()[1] for line in log if line.startswith("compile")) == list("abcd")


def test_no_more_threads_than_cores(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5})
    threads: list[threading.Thread] = []
    log: list[str] = []
    kernels = [Kernel(n, log, lambda: threads.append(threading.current_thread())) for n in "cab"]
    launch_all([launch(kernel) for kernel in kernels], "variant")
    assert len(threads) == 3
    assert len(set(threads)) == 1
    assert [line.split()[1] for line in log if line.startswith("compile")] == list("cab")


def test_the_first_error_in_order_is_raised_and_nothing_is_launched(driver: Driver) -> None:
    log: list[str] = []
    later_failed = threading.Event()

    def fail(message: str, wait: bool = False) -> Callable[[], object]:
        def compiling() -> object:
            assert not wait or later_failed.wait(60)
            later_failed.set()
            raise RuntimeError(message)

        return compiling

    kernels = [Kernel("a", log), Kernel("b", log, fail("b broke", wait=True)), Kernel("c", log)]
    kernels[2].compiling = fail("c broke")
    launches = [launch(kernel) for kernel in kernels]
    for _ in range(2):  # compiles again where nothing was launched
        with pytest.raises(RuntimeError, match="b broke"):
            launch_all(launches, "variant")
        assert {line.split()[0] for line in log} == {"compile", "prepare"}
    kernels[1].compiling = kernels[2].compiling = int
    launch_all(launches, "variant")
    assert log[-3:] == [f"launch {name} {GIVEN}" for name in "abc"]


def test_interpreted_kernels_need_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.runtime, "driver", None)
    log: list[str] = []
    launch_all([launch(Interpreted(name, log)) for name in "cab"], "variant")
    assert log == list("cab")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled")
@pytest.mark.parametrize("norm", [False, True])
def test_launches_find_what_was_compiled_before(
    driver: Driver, norm: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from forgetmenot_kernels.gated_delta_rule.triton_rule import gated_delta_rule

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    where: dict[str, str] = {}

    def listener(*, src: Any, **rest: Any) -> None:
        assert src.name not in where
        where[src.name] = threading.current_thread().name

    monkeypatch.setattr(triton.knobs.compilation, "listener", listener)
    heads = 2 + norm  # of its own, so that one case leaves nothing compiled to the other
    numbers = torch.zeros(3, 70 * heads * 64 + 1, dtype=torch.bfloat16)
    # k begins at an odd number, which kernels compiled for multiples of 16 bytes cannot take
    q, k, v = (x[:-1].view(1, 70, heads, 64) for x in numbers)
    gates = [torch.zeros(1, 70, heads) for _ in range(2)]
    leaves = [x.requires_grad_() for x in (q, k, v, *gates)]
    forward = [*["_unit_length_kernel"] * norm, "solve_kernel", "states_kernel", "output_kernel"]
    backward = ["recompute_kernel", "states_kernel", "dstates_kernel", "output_gradient_kernel"]
    backward += ["solve_gradient_kernel", *["_unit_length_gradient_kernel"] * norm]
    for call in range(2):
        o, _ = gated_delta_rule(*leaves, 1.0, norm, None, False, None)
        torch.autograd.grad(o.sum(), leaves)
        launched = [entry for entry in driver.log if not entry.startswith("prepare")]
        assert launched == (forward + backward) * (call + 1)
        assert where.keys() == {*forward, *backward}
        assert all(thread.startswith("ThreadPoolExecutor") for thread in where.values())
        prepared = {entry for entry in driver.log if entry.startswith("prepare")}
        assert prepared == {f"prepare {name} on {DEVICE}" for name in where}
