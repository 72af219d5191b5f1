"""Retention against the formulas: complex rotation, a token at a time, in float64."""

import pytest
import torch

from forgetmenot.mixers.base import Place
from forgetmenot.mixers.retention import Mixer, Options, log_decays

WIDTH, HEADS, KEY, VALUE = 10, 3, 6, 5


@torch.no_grad()
# angles are float32 in the mixer
@pytest.mark.parametrize(("theta", "tolerance"), [(10000.0, 1e-5), (None, 1e-9)])
def test_it_computes_the_formulas(theta: float | None, tolerance: float) -> None:
    torch.manual_seed(0)
    mixer = Mixer(Place(WIDTH), Options(HEADS, KEY, VALUE, theta)).double()
    mixer.norm.weight.copy_(torch.randn(VALUE))
    x_LD = torch.randn(70, WIDTH, dtype=torch.float64)
    found, state, _ = mixer(x_LD[None])
    memory = torch.zeros(HEADS, KEY, VALUE, dtype=torch.float64)
    for t, x in enumerate(x_LD):
        q, k = ((m.weight @ x).view(HEADS, 2, KEY // 2) for m in (mixer.q, mixer.k))
        if theta is not None:
            angle = t * theta ** (-torch.arange(KEY // 2, dtype=torch.float64) / (KEY // 2))
            turn = torch.polar(torch.ones_like(angle), angle)
            pairs = (torch.complex(z[:, 0], z[:, 1]) * turn for z in (q, k))
            q, k = (torch.stack((z.real, z.imag), 1) for z in pairs)
        q, k, v = q.flatten(1), k.flatten(1), (mixer.v.weight @ x).view(HEADS, VALUE)
        read = []
        for h in range(HEADS):
            memory[h] = (1 - 2.0 ** (-5 - h)) * memory[h] + torch.outer(k[h], v[h])
            o = memory[h].T @ q[h] / KEY**0.5
            read.append(o / (o.square().mean() + 1e-5).sqrt() * mixer.norm.weight)
        gate = mixer.gate.weight @ x
        expected = mixer.out.weight @ (torch.cat(read) * gate * gate.sigmoid())
        torch.testing.assert_close(found[0, t], expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state.memory_BHKV[0], memory, rtol=tolerance, atol=tolerance)


def test_decays_are_retnets() -> None:
    decay = log_decays(8, torch.zeros(1, dtype=torch.float64)).exp()
    expected = [1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 4096]
    torch.testing.assert_close(decay[[0, 1, 7]], torch.tensor(expected, dtype=torch.float64))
    assert log_decays(2, torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32


def test_values_are_twice_as_wide_as_keys_unless_told() -> None:
    mixer = Mixer(Place(WIDTH), Options(HEADS, KEY))
    assert mixer.v.out_features == 2 * HEADS * KEY
    assert mixer.state_bytes(1) == 4 * HEADS * KEY * 2 * KEY


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_memory_stays_float32_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mixer = Mixer(Place(WIDTH), Options(HEADS, KEY))
    x = torch.randn(2, 40, WIDTH)
    exact, _, _ = mixer(x)
    with torch.autocast("cpu", dtype):
        mixed, state, _ = mixer(x)
    assert state.memory_BHKV.dtype == torch.float32
    assert (mixed - exact).norm() <= 0.05 * exact.norm()
    y, state, _ = mixer.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    assert state.memory_BHKV.dtype == torch.float32
    assert (y - exact).norm() <= 0.05 * exact.norm()


def test_odd_keys_cannot_be_rotated() -> None:
    with pytest.raises(ValueError, match="key_dim: found 5; allowed: even"):
        Options(2, 5)
