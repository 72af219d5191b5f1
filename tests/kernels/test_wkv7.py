"""The chunked WKV of RWKV-7 against its definition in float64."""

import itertools

import pytest
import torch

from forgetmenot_kernels.wkv7 import wkv7, wkv7_step


def inputs(
    time: int, log_decay: float, dtype: torch.dtype, batch: int = 2, states: int | None = None
) -> list[torch.Tensor]:
    """Like those of RWKV-7: the state is read for -k_hat and written at k_hat times a rate."""
    torch.manual_seed(time)
    heads, key_dim, value_dim = 2, 8, 12
    lead = (batch, time, heads)
    r, k, direction = (torch.randn(*lead, key_dim) for _ in range(3))
    v = torch.randn(*lead, value_dim)
    w = log_decay * torch.rand(*lead, key_dim)
    unit = torch.nn.functional.normalize(direction, dim=-1)
    b = unit * torch.rand(*lead, key_dim)
    state = torch.randn(states or batch, heads, value_dim, key_dim)
    return [x.to(dtype).requires_grad_() for x in (r, w, k, v, -unit, b, state)]


def run(args: list[torch.Tensor], impl: str, **options: object) -> list[torch.Tensor]:
    """Outputs and every gradient of a loss that uses output and final state."""
    *args, state = args
    o, final = wkv7(*args, initial_state_BHVK=state, impl=impl, **options)
    loss = (o.sin().sum() + (final * final.cos()).sum()).double()
    return [o, final, *torch.autograd.grad(loss, [*args, state])]


@pytest.mark.parametrize("log_decay", [0.0, -0.606531, -50.0])
@pytest.mark.parametrize("time", [1, 2, 3, 31, 32, 33, 100])
def test_chunked_equals_definition(time: int, log_decay: float) -> None:
    args = inputs(time, log_decay, torch.float64)
    for ours, exact in zip(run(args, "chunked"), run(args, "recurrent"), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("log_decay", [-0.606531, -50.0])
def test_float32_error_is_that_of_the_plain_loop(log_decay: float) -> None:
    exact = run(inputs(150, log_decay, torch.float64), "recurrent")
    loop = run(inputs(150, log_decay, torch.float32), "recurrent")
    ours = run(inputs(150, log_decay, torch.float32), "chunked")
    for x, y, z in zip(ours, loop, exact, strict=True):
        budget = 4 * (y - z).norm() + 1e-6 * z.norm()
        assert (x - z).norm() <= budget


def test_full_decay_forgets_all_before() -> None:
    *args, state = inputs(70, -0.5, torch.float32)
    with torch.no_grad():
        args[1][:, 50] = -torch.inf
        args[4][:, 50] = 0
    whole, final, *gradients = run([*args, state], "chunked")
    after, last = wkv7(*(x[:, 50:] for x in args))
    torch.testing.assert_close(whole[:, 50:], after)
    torch.testing.assert_close(final, last)
    assert all(x.isfinite().all() for x in gradients)


def test_two_segments_are_one_sequence() -> None:
    *args, state = inputs(100, -0.5, torch.float64)
    whole, final = wkv7(*args, initial_state_BHVK=state)
    first, middle = wkv7(*(x[:, :37] for x in args), initial_state_BHVK=state)
    second, last = wkv7(*(x[:, 37:] for x in args), initial_state_BHVK=middle)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(last, final)


@pytest.mark.parametrize("impl", ["chunked", "recurrent"])
def test_packed_documents_are_separate_sequences(impl: str) -> None:
    borders = [0, 1, 3, 69, 70, 75]
    args = inputs(75, -0.5, torch.float64, batch=1, states=5)
    packed = run(args, impl, cu_seqlens=torch.tensor(borders))
    loss, outputs, finals = torch.zeros((), dtype=torch.float64), [], []
    for n, (start, end) in enumerate(itertools.pairwise(borders)):
        o, final = wkv7(
            *(x[:, start:end] for x in args[:-1]),
            initial_state_BHVK=args[-1][n : n + 1],
            impl="recurrent",
        )
        loss = loss + o.sin().sum() + (final * final.cos()).sum()
        outputs.append(o)
        finals.append(final)
    separate = [torch.cat(outputs, 1), torch.cat(finals), *torch.autograd.grad(loss, args)]
    for ours, exact in zip(packed, separate, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_steps_are_one_sequence() -> None:
    *args, state = inputs(5, -0.5, torch.float32)
    whole, final = wkv7(*args, initial_state_BHVK=state)
    outputs = []
    with torch.no_grad():
        state = state.clone()
        for t in range(5):
            o, state = wkv7_step(*(x[:, t] for x in args), state)
            outputs.append(o)
    torch.testing.assert_close(torch.stack(outputs, 1), whole)
    torch.testing.assert_close(state, final)


def test_low_precision_in_float32_states_and_no_final_state() -> None:
    *args, _ = (x.detach().bfloat16() for x in inputs(5, -0.5, torch.float32))
    o, final = wkv7(*args)
    assert (o.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    assert wkv7(*args, output_final_state=False)[1] is None


def test_errors_name_the_argument() -> None:
    *args, state = inputs(4, -0.5, torch.float32)
    with pytest.raises(ValueError, match=r"w: found shape \(2, 3, 2, 8\); allowed: \(2, 4, 2, 8\)"):
        wkv7(args[0], args[1][:, :3], *args[2:])
    with pytest.raises(ValueError, match="impl: found 'slow'; allowed: chunked, recurrent"):
        wkv7(*args, impl="slow")
    with pytest.raises(TypeError, match=r"r: found dtype torch.int64"):
        wkv7(args[0].long(), *args[1:])
    with pytest.raises(ValueError, match=r"r: found shape \(2, 0, 2, 8\); allowed: \[B, T, H, K\]"):
        wkv7(*(x[:, :0] for x in args))
    with pytest.raises(ValueError, match=r"r: found shape \(2, 4, 2, 8\); allowed: \(1, 4, 2, 8\)"):
        wkv7(*args, cu_seqlens=torch.tensor([0, 4]))
    row = [x[:1] for x in args]
    with pytest.raises(ValueError, match=r"initial_state: found shape \(1, 2, 12, 8\)"):
        wkv7(*row, cu_seqlens=torch.tensor([0, 1, 4]), initial_state_BHVK=state[:1])
    with pytest.raises(ValueError, match=r"state: found shape \(2, 2, 8, 12\)"):
        wkv7_step(*(x[:, 0] for x in args), state.mT)
    with pytest.raises(TypeError, match=r"state: found dtype torch.bfloat16; allowed: float32"):
        wkv7_step(*(x[:, 0] for x in args), state.bfloat16())
