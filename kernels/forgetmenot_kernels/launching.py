"""Launches Triton kernels in order; those not compiled yet are compiled side by side before."""

import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import triton


class KernelLaunch(NamedTuple):
    """One launch of a `triton.jit` kernel: the arguments by place, and those by name (options)."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


_compiled: set[Hashable] = set()


def launch_all(launches: Sequence[KernelLaunch], variant: Hashable) -> None:
    """Launch in order, on the current device and its current stream.

    The first time that these kernels come with this variant, they are compiled side by side, on
    as many cores as the process may use, before the first of them is launched. Triton alone would
    compile each at its own launch, one after another.

    Args:
        launches: the launches; a kernel may come only once.
        variant: what decides how the kernels are compiled: device, dtypes, options. Too little in
            it costs time alone: a kernel that is not compiled yet is compiled at its launch.

    Raises:
        Exception: whatever Triton raises for the first kernel in order that cannot be compiled or
            loaded. Nothing has been launched then, and the next call compiles again.
    """
    key = (variant, *(launch.kernel.fn for launch in launches))
    if key not in _compiled:
        _compile(launches)
        _compiled.add(key)
    for kernel, grid, arguments, options in launches:
        kernel[grid](*arguments, **options)


def _compile(launches: Sequence[KernelLaunch]) -> None:
    # Kernels in Triton's interpreter are of another class, and there may be no driver.
    launches = [launch for launch in launches if isinstance(launch.kernel, triton.JITFunction)]
    if len(launches) < 2:
        return
    # Triton makes its driver when first asked; asked here, as several threads would make several.
    driver = triton.runtime.driver.active
    device, interface = driver.get_current_device(), driver.get_device_interface()

    def prepare(launch: KernelLaunch) -> Callable[..., Any] | None:
        """What starts the kernel; to make it, Triton may run a C compiler, and loads the kernel."""
        kernel, grid, arguments, options = launch
        # The current device is one of each thread's own.
        with interface.device(device):
            # The launch's own tensors, not their dtypes alone: Triton looks for kernels by which
            # addresses and integers are multiples of 16, too.
            made = kernel.run(*arguments, grid=grid, warmup=True, **options)
            return getattr(made, "run", None)  # nothing is made where a hook of Triton's forbids it

    # Triton's compiler holds Python's lock only while it reads the source. Not Triton's own
    # AsyncCompileMode: that stays switched on after an error, and makes no launchers.
    with ThreadPoolExecutor(min(len(launches), len(os.sched_getaffinity(0)))) as pool:
        list(pool.map(prepare, launches))
