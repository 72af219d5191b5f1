# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""One token of RWKV-7's WKV through Triton, the state changed in place."""

import torch
import triton
import triton.language as tl

ROWS = 16  # of the state, a program


@triton.jit
def _step_kernel(
    r_ptr, w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, state_ptr, o_ptr,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """BV rows of one head: states are [heads, V, K]."""
    head = tl.program_id(0).to(tl.int64)
    column, row = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    keys = head * K + column
    r = tl.load(r_ptr + keys, mask=column < K, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + keys, mask=column < K, other=0.0).to(tl.float32)
    k = tl.load(k_ptr + keys, mask=column < K, other=0.0).to(tl.float32)
    a = tl.load(a_ptr + keys, mask=column < K, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + keys, mask=column < K, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + head * V + row, mask=row < V, other=0.0).to(tl.float32)
    places = state_ptr + head * V * K + row[:, None] * K + column[None, :]
    inside = (row < V)[:, None] & (column < K)[None, :]
    state = tl.load(places, mask=inside, other=0.0)
    read = tl.sum(state * a[None, :], 1)
    state = state * tl.exp(w)[None, :] + read[:, None] * b[None, :] + v[:, None] * k[None, :]
    tl.store(places, state, mask=inside)
    o = tl.sum(state * r[None, :], 1)
    tl.store(o_ptr + head * V + row, o.to(o_ptr.dtype.element_ty), mask=row < V)


def step(
    r_BHK: torch.Tensor,
    w_BHK: torch.Tensor,
    k_BHK: torch.Tensor,
    v_BHV: torch.Tensor,
    a_BHK: torch.Tensor,
    b_BHK: torch.Tensor,
    state_BHVK: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As the public `wkv7_step`, for arguments it has checked; without gradients.

    Raises TypeError for a state other than float32, ValueError when a gradient is asked for.
    """
    inputs = (r_BHK, w_BHK, k_BHK, v_BHV, a_BHK, b_BHK, state_BHVK)
    if state_BHVK.dtype != torch.float32:
        raise TypeError(f"state: found dtype {state_BHVK.dtype}; allowed with triton: float32")
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        raise ValueError("state: found inputs that require a gradient; allowed with triton: none")
    r, w, k, v, a, b, state = (x.contiguous() for x in inputs)
    batch, heads, value_dim, key_dim = state.shape
    o = torch.empty_like(v)
    with torch.cuda.device_of(r):
        _step_kernel[batch * heads, triton.cdiv(value_dim, ROWS)](
            r, w, k, v, a, b, state, o, key_dim, value_dim, triton.next_power_of_2(key_dim), ROWS
        )
    return o, state
