"""The scan of RWKV-4's WKV against its definition in float64."""

import itertools

import pytest
import torch

from forgetmenot_kernels.wkv4 import WKV4State, wkv4, wkv4_step


def inputs(time: int, spread: float, batch: int = 2) -> list[torch.Tensor]:
    """Keys, values, decays and bonuses of 6 channels, float64."""
    torch.manual_seed(time)
    k, v = (torch.randn(batch, time, 6, dtype=torch.float64) for _ in range(2))
    decay, bonus = torch.rand(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    return [x.requires_grad_() for x in (k * spread, v, decay, bonus)]


def read(state: WKV4State) -> torch.Tensor:
    """What a state means, whatever its exponents p are."""
    return (state.a / state.b).sum() + (state.b.log() + state.p).sum()


def run(time: int, spread: float, impl: str) -> list[torch.Tensor]:
    """Two segments; outputs and every gradient of a loss on both and on the final state."""
    leaves = inputs(time, spread)
    first, state = wkv4(*leaves, impl=impl)
    second, state = wkv4(*leaves, initial_state=state, impl=impl)
    loss = first.sin().sum() + second.cos().sum() + read(state)
    return [first, second, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("spread", [1.0, 40.0])
@pytest.mark.parametrize("time", [1, 2, 3, 63, 100])
def test_scan_equals_definition(time: int, spread: float) -> None:
    for ours, exact in zip(run(time, spread, "scan"), run(time, spread, "recurrent"), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("impl", ["scan", "recurrent"])
def test_packed_documents_are_separate_sequences(impl: str) -> None:
    borders = [0, 1, 3, 40, 41]
    leaves = inputs(41, 1.0, batch=1)
    state = WKV4State(*torch.rand(3, 4, 6, dtype=torch.float64))
    packed, finals = wkv4(*leaves, initial_state=state, cu_seqlens=torch.tensor(borders), impl=impl)
    packed_loss, outputs, loss = packed.sin().sum() + read(finals), [], 0.0
    for n, (start, end) in enumerate(itertools.pairwise(borders)):
        k, v = (x[:, start:end] for x in leaves[:2])
        own = WKV4State(*(x[n : n + 1] for x in state))
        o, final = wkv4(k, v, *leaves[2:], initial_state=own, impl="recurrent")
        outputs.append(o)
        loss = loss + o.sin().sum() + read(final)
    ours = [packed, *torch.autograd.grad(packed_loss, leaves)]
    separate = [torch.cat(outputs, 1), *torch.autograd.grad(loss, leaves)]
    for x, exact in zip(ours, separate, strict=True):
        torch.testing.assert_close(x, exact, rtol=1e-8, atol=1e-9)


def test_steps_are_one_sequence() -> None:
    k, v, decay, bonus = (x.detach().float() for x in inputs(5, 3.0))
    whole, final = wkv4(k, v, decay, bonus)
    state, outputs = WKV4State.empty(k), []
    for t in range(5):
        o, state = wkv4_step(k[:, t], v[:, t], decay, bonus, state)
        outputs.append(o)
    torch.testing.assert_close(torch.stack(outputs, 1), whole)
    torch.testing.assert_close(state, final)


def test_huge_keys_stay_finite_in_float32() -> None:
    k = torch.tensor([-300.0, 300.0, 0.0, 250.0]).view(1, 4, 1)
    wkv, state = wkv4(k, torch.arange(4.0).view(1, 4, 1), torch.ones(1), torch.zeros(1))
    assert torch.isfinite(wkv).all()
    assert torch.isfinite(torch.cat(state)).all()
    torch.testing.assert_close(wkv.flatten(), torch.tensor([0.0, 1.0, 1.0, 1.0]))


def test_errors_name_the_argument() -> None:
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"decay: found shape \(5,\); allowed: \(4,\)"):
        wkv4(x, x, torch.zeros(5), torch.zeros(4))
    bad = WKV4State(*(torch.zeros(1, 4) for _ in range(3)))
    with pytest.raises(ValueError, match=r"initial_state\.a: found shape"):
        wkv4(x, x, torch.zeros(4), torch.zeros(4), initial_state=bad)
    x, ones = x[:, 0], torch.zeros(4)
    with pytest.raises(ValueError, match=r"state\.a: found shape \(1, 4\); allowed: \(2, 4\)"):
        wkv4_step(x, x, ones, ones, bad)
    with pytest.raises(TypeError, match=r"state\.a: found dtype torch.bfloat16; allowed: float32"):
        wkv4_step(x, x, ones, ones, WKV4State(*(x.bfloat16() for _ in range(3))))
