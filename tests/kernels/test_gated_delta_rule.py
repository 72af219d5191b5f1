"""The chunked gated delta rule against its definition in float64."""

import pytest
import torch

from forgetmenot_kernels.gated_delta_rule import gated_delta_rule


def inputs(time: int, log_decay: float, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(time)
    batch, heads, key_dim, value_dim = 2, 2, 8, 12
    unit = torch.nn.functional.normalize
    q, k = (unit(torch.randn(batch, time, heads, key_dim), dim=-1) for _ in range(2))
    v = torch.randn(batch, time, heads, value_dim)
    g = log_decay * torch.rand(batch, time, heads)
    beta = torch.rand(batch, time, heads)
    state = torch.randn(batch, heads, key_dim, value_dim)
    return [x.to(dtype).requires_grad_() for x in (q, k, v, g, beta, state)]


def run(args: list[torch.Tensor], impl: str) -> list[torch.Tensor]:
    """Outputs and every gradient of a loss that uses output and final state."""
    *args, state = args
    o, final = gated_delta_rule(*args, initial_state_BHKV=state, impl=impl)
    loss = (o.sin().sum() + (final * final.cos()).sum()).double()
    return [o, final, *torch.autograd.grad(loss, [*args, state])]


@pytest.mark.parametrize("log_decay", [0.0, -0.1, -50.0])
@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 127, 200])
def test_chunked_equals_definition(time: int, log_decay: float) -> None:
    args = inputs(time, log_decay, torch.float64)
    for ours, exact in zip(run(args, "chunked"), run(args, "recurrent"), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_float32_error_is_that_of_the_plain_loop() -> None:
    exact = run(inputs(150, -0.1, torch.float64), "recurrent")
    loop = run(inputs(150, -0.1, torch.float32), "recurrent")
    ours = run(inputs(150, -0.1, torch.float32), "chunked")
    for x, y, z in zip(ours, loop, exact, strict=True):
        budget = 4 * (y - z).norm() + 1e-6 * z.norm()
        assert (x - z).norm() <= budget


def test_two_segments_are_one_sequence() -> None:
    *args, state = inputs(100, -0.1, torch.float64)
    whole, final = gated_delta_rule(*args, initial_state_BHKV=state)
    first, middle = gated_delta_rule(*(x[:, :37] for x in args), initial_state_BHKV=state)
    second, last = gated_delta_rule(*(x[:, 37:] for x in args), initial_state_BHKV=middle)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(last, final)


def test_errors_name_the_argument() -> None:
    *args, _ = inputs(4, -0.1, torch.float32)
    with pytest.raises(ValueError, match=r"g: found shape \(2, 3, 2\); allowed: \(2, 4, 2\)"):
        gated_delta_rule(*args[:3], args[3][:, :3], args[4])
    with pytest.raises(ValueError, match="impl: found 'triton'; allowed: chunked, recurrent"):
        gated_delta_rule(*args, impl="triton")
    with pytest.raises(TypeError, match=r"q: found dtype torch.int64"):
        gated_delta_rule(args[0].long(), *args[1:])
