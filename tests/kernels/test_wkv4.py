"""The doubling scan of RWKV-4's WKV against its definition in float64."""

import pytest
import torch

from forgetmenot_kernels.wkv4 import WKV4State, wkv4


def run(time: int, spread: float, impl: str) -> list[torch.Tensor]:
    """Two segments; outputs and every gradient of a loss on both and on the final state."""
    torch.manual_seed(time)
    k, v = (torch.randn(2, time, 6, dtype=torch.float64) for _ in range(2))
    decay, bonus = torch.rand(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (k.detach() * spread, v, decay, bonus)]
    first, state = wkv4(*leaves, impl=impl)
    second, state = wkv4(*leaves, initial_state=state, impl=impl)
    read = (state.a / state.b).sum() + (state.b.log() + state.p).sum()
    loss = first.sin().sum() + second.cos().sum() + read
    return [first, second, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("spread", [1.0, 40.0])
@pytest.mark.parametrize("time", [1, 2, 3, 63, 100])
def test_scan_equals_definition(time: int, spread: float) -> None:
    for ours, exact in zip(run(time, spread, "scan"), run(time, spread, "recurrent"), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-9)


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
