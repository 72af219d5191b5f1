"""RWKV-4's WKV: its definition as a loop over time, and a doubling scan over all tokens at once."""

from typing import NamedTuple

import torch

EMPTY = -1e30  # exponent of a weight that does not exist: exp(EMPTY - p) is 0 for any finite p


class WKV4State(NamedTuple):
    """Weighted sums a e^p (of values) and b e^p (of ones), each float32 [B, D]."""

    a: torch.Tensor
    b: torch.Tensor
    p: torch.Tensor

    @classmethod
    def empty(cls, like_BTD: torch.Tensor) -> "WKV4State":
        """The state before any token, for inputs shaped [B, T, D]."""
        dtype = torch.float64 if like_BTD.dtype == torch.float64 else torch.float32
        zero = torch.zeros_like(like_BTD[:, 0], dtype=dtype)
        return cls(zero, zero, zero + EMPTY)


def step(
    k_BD: torch.Tensor,
    v_BD: torch.Tensor,
    decay_D: torch.Tensor,
    bonus_D: torch.Tensor,
    state: WKV4State,
) -> tuple[torch.Tensor, WKV4State]:
    """One token; output and new state in the state's dtype. Differentiable: the state is kept."""
    a, b, p = state
    k, v, decay, bonus = (x.to(p.dtype) for x in (k_BD, v_BD, decay_D, bonus_D))
    top = torch.maximum(p, bonus + k)
    old, new = (p - top).exp(), (bonus + k - top).exp()
    wkv = (old * a + new * v) / (old * b + new)
    top = torch.maximum(p - decay, k)
    old, new = (p - decay - top).exp(), (k - top).exp()
    return wkv, WKV4State(old * a + new * v, old * b + new, top)


def recurrent(
    k_BTD: torch.Tensor,
    v_BTD: torch.Tensor,
    decay_D: torch.Tensor,
    bonus_D: torch.Tensor,
    initial_state: WKV4State,
    last_B: torch.Tensor | None,
) -> tuple[torch.Tensor, WKV4State]:
    """One step a token, as the definition reads: the oracle of the tests.

    The state is that after token `last_B` of each row; None = after the last one.
    """
    state, outputs, states = initial_state, [], []
    for k, v in zip(k_BTD.unbind(1), v_BTD.unbind(1), strict=True):
        wkv, state = step(k, v, decay_D, bonus_D, state)
        outputs.append(wkv)
        states.append(state)
    if last_B is not None:
        chosen = [states[t] for t in last_B.tolist()]
        parts = ([last[n][row] for row, last in enumerate(chosen)] for n in range(3))
        state = WKV4State(*(torch.stack(part) for part in parts))
    return torch.stack(outputs, 1).to(v_BTD.dtype), state


def scan(
    k_BTD: torch.Tensor,
    v_BTD: torch.Tensor,
    decay_D: torch.Tensor,
    bonus_D: torch.Tensor,
    initial_state: WKV4State,
    last_B: torch.Tensor | None,
) -> tuple[torch.Tensor, WKV4State]:
    """Inclusive scan by doubling over [initial state, token 1, ..., token T]: log2 T passes.

    The state is that after token `last_B` of each row; None = after the last one. The maxima p
    only stabilise, so they carry no gradient: the gradient of k enters through exp(k - stop(k)),
    whose value is 1.
    """
    time, dtype = k_BTD.shape[1], initial_state.p.dtype
    k, v = k_BTD.to(dtype), v_BTD.to(dtype)
    one = (k - k.detach()).exp()
    # the initial exponent may carry a gradient of an earlier segment: the same trick keeps it
    unit = (initial_state.p - initial_state.p.detach()).exp()
    a = torch.cat(((initial_state.a * unit)[:, None], v * one), 1)
    b = torch.cat(((initial_state.b * unit)[:, None], one), 1)
    p = torch.cat((initial_state.p[:, None], k), 1).detach()
    step = 1
    while step <= time:
        p_left = p[:, :-step] - step * decay_D
        top = torch.maximum(p[:, step:], p_left.detach())
        left, right = (p_left - top).exp(), (p[:, step:] - top).exp()
        a = torch.cat((a[:, :step], a[:, :-step] * left + a[:, step:] * right), 1)
        b = torch.cat((b[:, :step], b[:, :-step] * left + b[:, step:] * right), 1)
        p = torch.cat((p[:, :step], top), 1)
        step *= 2
    top = torch.maximum(p[:, :-1], (bonus_D + k).detach())
    old, new = (p[:, :-1] - top).exp(), (bonus_D + k - top).exp()
    wkv_BTD = (a[:, :-1] * old + v * new) / (b[:, :-1] * old + new)
    if last_B is None:
        return wkv_BTD.to(v_BTD.dtype), WKV4State(a[:, -1], b[:, -1], p[:, -1])
    rows = torch.arange(len(last_B), device=last_B.device)
    return wkv_BTD.to(v_BTD.dtype), WKV4State(*(x[rows, last_B + 1] for x in (a, b, p)))
