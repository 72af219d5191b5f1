"""RWKV-4's WKV: its definition as a loop over time, and a scan over all tokens at once."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

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
    """All tokens at once, by a scan over [initial state, token 1, ..., token T - 1].

    The state is that after token `last_B` of each row; None = after the last one. The maxima that
    exponents are taken from only stabilise, so they carry no gradient.
    """
    dtype = initial_state.p.dtype
    k, v = k_BTD.to(dtype), v_BTD.to(dtype)
    a = torch.cat((initial_state.a[:, None], v[:, :-1]), 1)
    b = torch.cat((initial_state.b[:, None], torch.ones_like(v[:, :-1])), 1)
    p = torch.cat((initial_state.p[:, None], k[:, :-1]), 1)
    ab_2BTD, p = _prefixes(torch.stack((a, b)), p, decay_D)
    a, b = ab_2BTD
    top = torch.maximum(p, bonus_D + k).detach()
    old, new = (p - top).exp(), (bonus_D + k - top).exp()
    wkv_BTD = (a * old + v * new) / (b * old + new)
    rows = torch.arange(len(k), device=k.device)
    last_B = rows.new_full((len(k),), -1) if last_B is None else last_B
    v_last, p_last = v[rows, last_B], p[rows, last_B]
    own = torch.stack((v_last, torch.ones_like(v_last)))
    (a, b), p = _joined(ab_2BTD[:, rows, last_B], p_last, own, k[rows, last_B], decay_D)
    return wkv_BTD.to(v_BTD.dtype), WKV4State(a, b, p)


def _prefixes(
    ab_2BTD: torch.Tensor, p_BTD: torch.Tensor, decay_D: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums (a, b) e^p over each element and all before it, `decay` from one to the next.

    Pairs are joined and scanned in the same way, so all levels together take twice the work of the
    first; a scan by doubling takes log2 T times as much, and these passes are bound by memory.
    """
    time = p_BTD.shape[1]
    if time == 1:
        return ab_2BTD, p_BTD
    if time % 2:
        ab_2BTD, p_BTD = F.pad(ab_2BTD, (0, 0, 0, 1)), F.pad(p_BTD, (0, 0, 0, 1), value=EMPTY)
    even, odd = ab_2BTD.unflatten(2, (-1, 2)).unbind(3)
    p_even, p_odd = p_BTD.unflatten(1, (-1, 2)).unbind(2)
    odd, p_odd = _prefixes(*_joined(even, p_even, odd, p_odd, decay_D), 2 * decay_D)
    # nothing before the first pair; shifted by padding, whose gradient needs no zeros of full size
    before, p_before = F.pad(odd, (0, 0, 1, -1)), F.pad(p_odd, (0, 0, 1, -1), value=EMPTY)
    even, p_even = _joined(before, p_before, even, p_even, decay_D)
    ab_2BTD = torch.stack((even, odd), 3).flatten(2, 3)
    p_BTD = torch.stack((p_even, p_odd), 2).flatten(1, 2)
    return ab_2BTD[:, :, :time], p_BTD[:, :time]


def _joined(
    ab_2BTD: torch.Tensor,
    p_BTD: torch.Tensor,
    later_2BTD: torch.Tensor,
    p_later_BTD: torch.Tensor,
    decay_D: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums that end where others end `decay` later, and those, as one."""
    decayed = p_BTD - decay_D
    top = torch.maximum(decayed, p_later_BTD).detach()
    return ab_2BTD * (decayed - top).exp() + later_2BTD * (p_later_BTD - top).exp(), top
