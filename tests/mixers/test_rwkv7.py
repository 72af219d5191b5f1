"""RWKV-7's mixers against the formulas, a token at a time in float64, and how they start."""

import math

import pytest
import torch
from torch import nn

from forgetmenot.mixers import rwkv7_channel, rwkv7_time
from forgetmenot.mixers.base import Mixer, Place

WIDTH, HEADS, DIM = 12, 3, 5
OPTIONS = rwkv7_time.Options(HEADS, DIM, decay_rank=4, rate_rank=3, gate_rank=6)


def random_mixer(mixer: Mixer) -> Mixer:
    """In float64, with every parameter drawn: what starts at 0 or 1 would hide mistakes."""
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.7)
    return mixer.double()


def time_mix(mixer: rwkv7_time.Mixer, x_LD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs [L, D] and the memory [H, V, K] after them, by the formulas."""
    memory = torch.zeros(HEADS, DIM, DIM, dtype=torch.float64)
    last = torch.zeros(WIDTH, dtype=torch.float64)
    outputs = []
    for x in x_LD:
        x_r, x_w, x_k, x_v, x_a, x_g = (x + (last - x) * mix for mix in mixer.mix_rwkvag)
        last = x
        r, k, v = (
            (linear.weight @ part).view(HEADS, DIM)
            for linear, part in ((mixer.receptance, x_r), (mixer.key, x_k), (mixer.value, x_v))
        )
        decay = mixer.decay + mixer.decay_up.weight @ torch.tanh(mixer.decay_down.weight @ x_w)
        kept = torch.exp(-math.exp(-0.5) * decay.sigmoid()).view(HEADS, DIM)
        rate = (mixer.rate + mixer.rate_up.weight @ mixer.rate_down.weight @ x_a).sigmoid()
        rate = rate.view(HEADS, DIM)
        gate = mixer.gate_up.weight @ (mixer.gate_down.weight @ x_g).sigmoid()
        unit = k * mixer.removal.view(HEADS, DIM)
        unit = unit / unit.norm(dim=-1, keepdim=True)
        k = k * (1 + (rate - 1) * mixer.rate_in_key.view(HEADS, DIM))
        read = []
        for h in range(HEADS):
            change = torch.diag(kept[h]) - torch.outer(unit[h], rate[h] * unit[h])
            memory[h] = memory[h] @ change + torch.outer(v[h], k[h])
            o = memory[h] @ r[h]
            o = (o - o.mean()) / (o.var(correction=0) + 64e-5).sqrt()
            part = slice(h * DIM, (h + 1) * DIM)
            o = o * mixer.norm.weight[part] + mixer.norm.bias[part]
            read.append(o + (r[h] * k[h] * mixer.bonus[h]).sum() * v[h])
        outputs.append(mixer.out.weight @ (torch.cat(read) * gate))
    return torch.stack(outputs), memory


@torch.no_grad()
def test_time_mixing_computes_the_formulas() -> None:
    torch.manual_seed(0)
    mixer = random_mixer(rwkv7_time.Mixer(Place(WIDTH, 2, 6), OPTIONS))
    assert isinstance(mixer, rwkv7_time.Mixer)
    x = torch.randn(2, 37, WIDTH, dtype=torch.float64)
    y, state, _ = mixer(x)
    for row in range(2):
        expected, memory = time_mix(mixer, x[row])
        torch.testing.assert_close(y[row], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(state.memory_BHVK[row], memory, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_channel_mixing_computes_the_formulas() -> None:
    torch.manual_seed(0)
    mixer = random_mixer(rwkv7_channel.Mixer(Place(WIDTH, 3, 6), rwkv7_channel.Options(20)))
    x = torch.randn(1, 5, WIDTH, dtype=torch.float64)
    y, _, _ = mixer(x)
    last = torch.zeros(WIDTH, dtype=torch.float64)
    for t in range(5):
        mixed = x[0, t] + (last - x[0, t]) * mixer.get_parameter("mix_k")
        inner = (mixer.get_parameter("key.weight") @ mixed).clamp(min=0) ** 2
        expected = mixer.get_parameter("value.weight") @ inner
        torch.testing.assert_close(y[0, t], expected, rtol=1e-9, atol=1e-9)
        last = x[0, t]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_memory_stays_float32_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mixer = rwkv7_time.Mixer(Place(WIDTH, 2, 6), OPTIONS)
    x = torch.randn(2, 40, WIDTH)
    exact, _, _ = mixer(x)
    with torch.autocast("cpu", dtype):
        mixed, state, _ = mixer(x)
    assert state.memory_BHVK.dtype == torch.float32
    assert (mixed - exact).norm() <= 0.05 * exact.norm()
    y, state, _ = mixer.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    assert state.memory_BHVK.dtype == torch.float32
    assert (y - exact).norm() <= 0.05 * exact.norm()


@torch.no_grad()
def test_time_mixing_starts_with_short_and_long_memory() -> None:
    mixer = rwkv7_time.Mixer(Place(64, layer=4, layers=8), rwkv7_time.Options(4, 16))
    rate = math.exp(-0.5) * mixer.decay.sigmoid()  # without an input: log decay a token
    assert rate.min() < 1e-3
    assert rate.max() > 0.1
    assert (rate.diff() >= 0).all()


@torch.no_grad()
def test_mixes_start_with_the_last_token_in_the_first_channel_and_with_the_current_later() -> None:
    time = rwkv7_time.Mixer(Place(64, layer=4, layers=8), rwkv7_time.Options(4, 16)).mix_rwkvag
    channel = rwkv7_channel.Mixer(Place(64, layer=4, layers=8), rwkv7_channel.Options(8)).mix_k
    for mix in (*time, channel):
        assert (mix <= 1).all()
        assert (mix.diff() < 0).all()
    # keys and values of later layers see more of the current token
    torch.testing.assert_close(time[:, 0], torch.tensor([1, 1, 1 - 1.6 / 7, 1 - 2.4 / 7, 1, 1]))
    torch.testing.assert_close(channel[32], torch.tensor(1 - 0.5**0.0625))


def test_the_removed_key_never_blows_the_memory_up() -> None:
    """With rates near 1, an update takes away at most what was stored: norms stay bounded."""
    torch.manual_seed(0)
    mixer = rwkv7_time.Mixer(Place(WIDTH), OPTIONS)
    nn.init.constant_(mixer.rate, 20)
    with torch.no_grad():
        _, state, _ = mixer(torch.randn(1, 2000, WIDTH))
    assert state.memory_BHVK.abs().max() < 100
