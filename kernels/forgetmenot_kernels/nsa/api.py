"""Public entries of native sparse attention: validation and dispatch. The maths: README.md."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from forgetmenot_kernels.checks import check_floating, check_shape, choose
from forgetmenot_kernels.nsa.cache import Cache, pool
from forgetmenot_kernels.nsa.decode import gathered_step
from forgetmenot_kernels.nsa.reference import chunked, looped
from forgetmenot_kernels.packing import Packing, make_packing, pad, unpad
from forgetmenot_kernels.triton_device import check_triton_device, default_form


def nsa_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    gate: torch.Tensor,
    *,
    block: int,
    selected: int,
    window: int,
    scale: float | None = None,
    cu_seqlens: torch.Tensor | Packing | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """Compression, selection and window attention of whole sequences, added under their gates.

    Args:
        q: queries [B, T, G, D]; positions are in them already, as in the keys.
        k, v: keys and values [B, T, H, D], shared by all three branches; G is a multiple of H.
        gate: [B, T, G, 3], what multiplies compression, selection and window (after any sigmoid).
        block: tokens of a block, pooled and selected alike.
        selected: blocks a query attends; the first, previous and current one count among them.
        window: tokens the window branch sees, the current one included.
        scale: of the scores; D**-0.5 when None.
        cu_seqlens: borders [N + 1] of documents packed into one row (B = 1), or their Packing; each
            document stands alone.
        impl: "triton" (default on CUDA; one dtype of half precision or float32, D at most 256,
            scale above 0), "chunked" (default elsewhere; masks and PyTorch's attention) or "looped"
            (the definition).

    Returns:
        o [B, T, G, D] in v's dtype. The choice of blocks has no gradient.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, number or implementation, named.

    Source: NSA (arXiv 2502.11089) as used by the LTE paper; LTE specification, section 4.1.
    """
    batch, time, heads, width = q.shape
    packing: Packing | None = None
    if cu_seqlens is not None:
        if batch != 1:
            raise ValueError(f"q: found a batch of {batch}; allowed: 1 with cu_seqlens")
        packing = make_packing(cu_seqlens, time)
    check_floating("q", q)
    check_shape("k", k, (batch, time, k.shape[2], width), "[B, T, H, D]")
    check_shape("v", v, tuple(k.shape), "[B, T, H, D]")
    check_shape("gate", gate, (batch, time, heads, 3), "[B, T, G, 3]")
    _check(heads, k.shape[2], block, selected, window)
    forms: dict[str, Callable[..., torch.Tensor]] = {
        "chunked": functools.partial(_padded, chunked),
        "looped": functools.partial(_padded, looped),
        "triton": _triton,
    }
    run = choose(forms, impl or default_form(q, "chunked"))
    scale = width**-0.5 if scale is None else scale
    o: torch.Tensor = run(q, k, v, gate, block, selected, window, scale, packing)
    return o


def _padded(
    attention: Callable[..., torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    gate: torch.Tensor,
    block: int,
    selected: int,
    window: int,
    scale: float,
    packing: Packing | None,
) -> torch.Tensor:
    """A PyTorch form; documents become the rows of a batch."""
    if packing is not None:
        q, k, v, gate = (pad(x, packing) for x in (q, k, v, gate))
    cache = nsa_cache(k.movedim(1, 2), v.movedim(1, 2), block=block)
    o = attention(q, cache, gate, block, selected, window, scale)
    return o if packing is None else unpad(o, packing)


def _triton(q: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """The kernels; Triton is imported when it is needed, since not every platform has it."""
    check_triton_device("q", q)
    form = importlib.import_module("forgetmenot_kernels.nsa.triton_attention")
    o: torch.Tensor = form.attention(q, *arguments)
    return o


def nsa_cache(
    k_BHCD: torch.Tensor,
    v_BHCD: torch.Tensor,
    *,
    block: int,
    length_B: torch.Tensor | None = None,
) -> Cache:
    """The cache of these keys and values, which become part of it; their blocks are pooled.

    `length_B` (int64): tokens of each sequence, None = C. Slots beyond hold zeros.
    Raises TypeError or ValueError for a wrong dtype, shape or number, named.
    """
    batch, _, count, _ = k_BHCD.shape
    check_floating("k", k_BHCD)
    check_shape("v", v_BHCD, tuple(k_BHCD.shape), "[B, H, C, D]")
    _check_at_least("block", block, 1)
    if length_B is None:
        length_B = torch.full((batch,), count, device=k_BHCD.device)
    check_shape("length", length_B, (batch,), "[B]")
    return Cache(k_BHCD, v_BHCD, pool(k_BHCD, block), pool(v_BHCD, block), length_B)


def nsa_cached_attention(
    q_BTGD: torch.Tensor,
    gate_BTG3: torch.Tensor,
    cache: Cache,
    *,
    block: int,
    selected: int,
    window: int,
    scale: float | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """`nsa_attention` of the last T tokens of each sequence in a cache that holds them already.

    The longest sequence fills the cache. Differentiable in the cache's tensors, too. `impl`:
    "chunked" (default) or "looped", in PyTorch on every device.
    """
    batch, time, heads, width = q_BTGD.shape
    check_floating("q", q_BTGD)
    if time > cache.k_BHCD.shape[2]:
        raise ValueError(
            f"q: found {time} tokens; allowed: up to the cache's {cache.k_BHCD.shape[2]}"
        )
    _check(heads, cache.k_BHCD.shape[1], block, selected, window)
    _check_pooled(cache, block)
    check_shape("q", q_BTGD, (*cache.k_BHCD.shape[:1], time, heads, width), "[B, T, G, D]")
    check_shape("gate", gate_BTG3, (batch, time, heads, 3), "[B, T, G, 3]")
    run = choose({"chunked": chunked, "looped": looped}, impl)
    scale = width**-0.5 if scale is None else scale
    return run(q_BTGD, cache, gate_BTG3, block, selected, window, scale)


def nsa_decode_step(
    q_BGD: torch.Tensor,
    k_BHD: torch.Tensor,
    v_BHD: torch.Tensor,
    gate_BG3: torch.Tensor,
    cache: Cache,
    *,
    block: int,
    selected: int,
    window: int,
    scale: float | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """`nsa_attention` of one further token of each sequence; the cache is changed in place.

    A step reads pooled entries, `selected` blocks and `window` tokens, never the whole cache.

    Args:
        q_BGD, k_BHD, v_BHD, gate_BG3: of the new token, as in `nsa_attention`.
        cache: with room for it: more slots than every sequence has tokens (otherwise PyTorch's
            indexing error, or with "triton", which does not wait for the device, an output of NaN),
            and pooled slots for each block that is begun. No gradient.
        block, selected, window, scale: as in `nsa_attention`.
        impl: "triton" (default on CUDA; not float64) or "gathered" (default elsewhere).

    Returns:
        o [B, G, D] in v's dtype.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, number or implementation, named.
    """
    batch, kv_heads, _, width = cache.k_BHCD.shape
    heads = q_BGD.shape[1]
    check_floating("q", q_BGD)
    _check(heads, kv_heads, block, selected, window)
    _check_pooled(cache, block)
    check_shape("q", q_BGD, (batch, heads, width), "[B, G, D]")
    check_shape("k", k_BHD, (batch, kv_heads, width), "[B, H, D]")
    check_shape("v", v_BHD, (batch, kv_heads, width), "[B, H, D]")
    check_shape("gate", gate_BG3, (batch, heads, 3), "[B, G, 3]")
    run = choose(
        {"gathered": gathered_step, "triton": _triton_step}, impl or default_form(q_BGD, "gathered")
    )
    scale = width**-0.5 if scale is None else scale
    with torch.no_grad():
        return run(q_BGD, k_BHD, v_BHD, gate_BG3, cache, block, selected, window, scale)


def _triton_step(q_BGD: torch.Tensor, *arguments: Any) -> torch.Tensor:
    check_triton_device("q", q_BGD)
    form = importlib.import_module("forgetmenot_kernels.nsa.triton_step")
    o_BGD: torch.Tensor = form.step(q_BGD, *arguments)
    return o_BGD


def _check(heads: int, kv_heads: int, block: int, selected: int, window: int) -> None:
    _check_at_least("block", block, 1)
    _check_at_least("selected", selected, 3)  # the three forced ones
    _check_at_least("window", window, 1)
    if heads % kv_heads:
        raise ValueError(f"q: found {heads} heads; allowed: a multiple of {kv_heads} KV heads")


def _check_pooled(cache: Cache, block: int) -> None:
    batch, kv_heads, capacity, width = cache.k_BHCD.shape
    for name in ("pooled_k_BHPD", "pooled_v_BHPD"):
        shape = (batch, kv_heads, -(-capacity // block), width)
        check_shape(f"cache.{name}", getattr(cache, name), shape, "[B, H, ceil(C / block), D]")


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}: found {value}; allowed: at least {least}")
