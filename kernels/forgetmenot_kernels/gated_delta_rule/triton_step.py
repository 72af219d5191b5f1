# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""One token of the gated delta rule through Triton, the state changed in place."""

import torch
import triton
import triton.language as tl

COLUMNS = 32  # of the state, a program


@triton.jit
def _step_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    g_ptr,
    beta_ptr,
    state_ptr,
    o_ptr,
    scale,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    NORM: tl.constexpr,
):
    """BV columns of one head: states are [heads, K, V]."""
    head = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    q = tl.load(q_ptr + head * K + row, mask=row < K, other=0.0).to(tl.float32)
    k = tl.load(k_ptr + head * K + row, mask=row < K, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + head * V + column, mask=column < V, other=0.0).to(tl.float32)
    decay = tl.exp(tl.load(g_ptr + head).to(tl.float32))
    beta = tl.load(beta_ptr + head).to(tl.float32)
    if NORM:
        q = q / tl.sqrt(tl.sum(q * q, 0) + 1e-6)
        k = k / tl.sqrt(tl.sum(k * k, 0) + 1e-6)
    places = state_ptr + head * K * V + row[:, None] * V + column[None, :]
    inside = (row < K)[:, None] & (column < V)[None, :]
    state = tl.load(places, mask=inside, other=0.0) * decay
    write = beta * (v - tl.sum(state * k[:, None], 0))
    state += k[:, None] * write[None, :]
    tl.store(places, state, mask=inside)
    o = tl.sum(state * q[:, None], 0) * scale
    tl.store(o_ptr + head * V + column, o.to(o_ptr.dtype.element_ty), mask=column < V)


def step(
    q_BHK: torch.Tensor,
    k_BHK: torch.Tensor,
    v_BHV: torch.Tensor,
    g_BH: torch.Tensor,
    beta_BH: torch.Tensor,
    state_BHKV: torch.Tensor,
    scale: float,
    qk_l2norm: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As the public `gated_delta_rule_step`, for arguments it has checked; without gradients.

    Raises TypeError for a state other than float32, ValueError when a gradient is asked for.
    """
    inputs = (q_BHK, k_BHK, v_BHV, g_BH, beta_BH, state_BHKV)
    if state_BHKV.dtype != torch.float32:
        raise TypeError(f"state: found dtype {state_BHKV.dtype}; allowed with triton: float32")
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        raise ValueError("state: found inputs that require a gradient; allowed with triton: none")
    q, k, v, g, beta, state = (x.contiguous() for x in inputs)
    batch, heads, key_dim, value_dim = state.shape
    o = torch.empty_like(v)
    with torch.cuda.device_of(q):
        _step_kernel[(batch * heads, triton.cdiv(value_dim, COLUMNS))](
            q, k, v, g, beta, state, o, scale, key_dim, value_dim,
            triton.next_power_of_2(key_dim), COLUMNS, qk_l2norm,
        )  # fmt: skip
    return o, state
