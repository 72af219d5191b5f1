"""Timing on a GPU, what the card can do at most, and PyTorch's own attention beside ours."""

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from forgetmenot_kernels.registry import Op
from forgetmenot_kernels.registry_inputs import Inputs

Call = Callable[[], Any]
DEVICE = "cuda"
FLUSH_BYTES = 256 * 2**20  # more than any cache of the device
SECONDS = 0.4  # that one measurement may take, beyond its least repeats
LEAST = 3
MOST_FLUSHES = 200
# where an operator's queries, keys and values [B, T, heads, width] stand among its arguments
ATTENTION = {
    "lte_attention": (0, 1, 2),
    "nsa_attention": (0, 1, 2),
    "gated_delta_rule": (0, 1, 2),
    "retention": (0, 1, 2),
    "wkv7": (0, 2, 3),
}


def milliseconds(call: Call, repeats: int) -> list[float]:
    """Median and quartiles of the device's time over repeats, each after its caches were flushed.

    Flushing goes on until the host should have queued the whole call, so that what counts is the
    device's time; calls that wait for the device, or take the host very long, also count that.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=DEVICE)
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    host = time.perf_counter() - start
    torch.cuda.synchronize()
    whole = time.perf_counter() - start
    one_flush = _timed(flush.zero_, flush, 1)[0] / 1e3
    flushes = min(MOST_FLUSHES, 1 + math.ceil(2 * host / one_flush))
    count = max(LEAST, min(repeats, int(SECONDS / whole)))
    times = _timed(call, flush, count, flushes)
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return [middle, low, high]


def _timed(call: Call, flush: torch.Tensor, count: int, flushes: int = 1) -> list[float]:
    events = []
    for _ in range(count):
        for _ in range(flushes):
            flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        events.append((start, end))
        torch.cuda.synchronize()  # the queue has room for one call
    return [start.elapsed_time(end) for start, end in events]


def ceilings(repeats: int) -> dict[str, float]:
    """TFLOP/s of an 8192-cubed bfloat16 product, and TB/s read and written by a copy of 2 GiB."""
    a, b = (torch.randn(8192, 8192, device=DEVICE).bfloat16() for _ in range(2))
    product = milliseconds(lambda: a @ b, repeats)
    source = torch.empty(2**31, dtype=torch.int8, device=DEVICE)
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source), repeats)
    return {"tflops": 2 * 8192**3 / product[0] / 1e9, "tbs": 2**32 / copy[0] / 1e9}


def graphed(call: Call) -> Call:
    """The call as one CUDA graph, so that the host's time is not in it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def heads_first(op: Op, inputs: Inputs) -> list[torch.Tensor]:
    """Queries, keys and values of an operator in `ATTENTION`, as [B, heads, T, width]."""
    return [inputs.arguments[n].transpose(1, 2) for n in ATTENTION[op.name]]


def dense_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """PyTorch's flash attention: causal over all tokens, or one query over all of them."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=q.shape[2] > 1, enable_gqa=q.shape[1] != k.shape[1]
        )


def flex_attention(inputs: Inputs) -> Callable[..., torch.Tensor]:
    """Compiled FlexAttention under the mask of `lte_attention`'s inputs, which is made here."""
    from torch.nn.attention import flex_attention as flex

    q, k, _, until_BTH = inputs.arguments
    window, groups = inputs.options["window"], q.shape[2] // k.shape[2]

    def seen(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (j <= i) & ((i - j < window) | (i < until_BTH[b, j, h // groups]))

    mask = torch.compile(flex.create_block_mask, dynamic=False)(
        seen, len(q), q.shape[2], q.shape[1], q.shape[1], device=DEVICE
    )
    compiled = torch.compile(flex.flex_attention, dynamic=False)
    return functools.partial(compiled, block_mask=mask, enable_gqa=groups > 1)
