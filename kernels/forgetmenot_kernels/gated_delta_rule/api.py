"""Public entry of the gated delta rule: validation and dispatch."""

import torch

from forgetmenot_kernels.checks import check_floating, check_shape, choose
from forgetmenot_kernels.gated_delta_rule.reference import chunked, recurrent


def gated_delta_rule(
    q_BTHK: torch.Tensor,
    k_BTHK: torch.Tensor,
    v_BTHV: torch.Tensor,
    g_BTH: torch.Tensor,
    beta_BTH: torch.Tensor,
    *,
    scale: float | None = None,
    initial_state_BHKV: torch.Tensor | None = None,
    impl: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T;  o_t = scale S_t^T q_t.

    Args:
        q_BTHK, k_BTHK: queries and keys; the caller normalises them.
        v_BTHV: values.
        g_BTH: log of the decay, at most 0.
        beta_BTH: writing strength, in [0, 1].
        scale: of the queries; K**-0.5 when None.
        initial_state_BHKV: float32 state to continue from; zeros when None.
        impl: "chunked" (default; chunks of 64, matrix products) or "recurrent" (the definition).

    Returns:
        o_BTHV in v's dtype and the final state [B, H, K, V] in float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: a wrong dtype, shape or implementation, named.

    Source: Gated DeltaNet (arXiv 2412.06464); the rule as in the LTE specification, section 1.4.
    """
    batch, time, heads, key_dim = q_BTHK.shape
    value_dim = v_BTHV.shape[-1]
    check_floating("q", q_BTHK)
    check_shape("k", k_BTHK, (batch, time, heads, key_dim), "[B, T, H, K]")
    check_shape("v", v_BTHV, (batch, time, heads, value_dim), "[B, T, H, V]")
    check_shape("g", g_BTH, (batch, time, heads), "[B, T, H]")
    check_shape("beta", beta_BTH, (batch, time, heads), "[B, T, H]")
    if initial_state_BHKV is not None:
        shape = (batch, heads, key_dim, value_dim)
        check_shape("initial_state", initial_state_BHKV, shape, "[B, H, K, V]")
    run = choose({"chunked": chunked, "recurrent": recurrent}, impl)
    scale = key_dim**-0.5 if scale is None else scale
    return run(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, scale, initial_state_BHKV)
