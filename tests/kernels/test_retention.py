"""Chunked retention against its definition in float64."""

import itertools

import pytest
import torch

from forgetmenot_kernels.retention import retention, retention_step


def inputs(
    time: int, log_decay: float, dtype: torch.dtype, batch: int = 2, states: int | None = None
) -> list[torch.Tensor]:
    torch.manual_seed(time)
    heads, key_dim, value_dim = 2, 8, 12
    q, k = (torch.randn(batch, time, heads, key_dim) for _ in range(2))
    v = torch.randn(batch, time, heads, value_dim)
    decay = log_decay * torch.tensor([1.0, 0.1])
    state = torch.randn(states or batch, heads, key_dim, value_dim)
    return [x.to(dtype).requires_grad_() for x in (q, k, v, decay, state)]


def run(args: list[torch.Tensor], impl: str, **options: object) -> list[torch.Tensor]:
    """Outputs and every gradient of a loss that uses output and final state."""
    *args, state = args
    o, final = retention(*args, initial_state=state, impl=impl, **options)
    loss = (o.sin().sum() + (final * final.cos()).sum()).double()
    return [o, final, *torch.autograd.grad(loss, [*args, state])]


@pytest.mark.parametrize("log_decay", [0.0, -0.03, -50.0])
@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 150])
def test_chunked_equals_definition(time: int, log_decay: float) -> None:
    args = inputs(time, log_decay, torch.float64)
    for ours, exact in zip(run(args, "chunked"), run(args, "recurrent"), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_float32_error_is_that_of_the_plain_loop() -> None:
    exact = run(inputs(150, -0.03, torch.float64), "recurrent")
    loop = run(inputs(150, -0.03, torch.float32), "recurrent")
    ours = run(inputs(150, -0.03, torch.float32), "chunked")
    for x, y, z in zip(ours, loop, exact, strict=True):
        budget = 4 * (y - z).norm() + 1e-6 * z.norm()
        assert (x - z).norm() <= budget


def test_it_is_attention_with_decayed_scores() -> None:
    q, k, v, decay, _ = inputs(70, -0.03, torch.float64)
    place = torch.arange(70)
    between = (place[:, None] - place).clamp(min=0)
    mask = (decay[:, None, None] * between).exp().tril()
    scores = torch.einsum("bthk,bshk->bhts", q, k) * mask * 0.7
    o, _ = retention(q, k, v, decay, scale=0.7)
    torch.testing.assert_close(o, torch.einsum("bhts,bshv->bthv", scores, v))


def test_two_segments_are_one_sequence() -> None:
    q, k, v, decay, state = inputs(100, -0.03, torch.float64)
    whole, final = retention(q, k, v, decay, initial_state=state)
    first, middle = retention(*(x[:, :37] for x in (q, k, v)), decay, initial_state=state)
    second, last = retention(*(x[:, 37:] for x in (q, k, v)), decay, initial_state=middle)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(last, final)


@pytest.mark.parametrize("impl", ["chunked", "recurrent"])
def test_packed_documents_are_separate_sequences(impl: str) -> None:
    borders = [0, 1, 3, 69, 70, 75]
    args = inputs(75, -0.03, torch.float64, batch=1, states=5)
    packed = run(args, impl, cu_seqlens=torch.tensor(borders))
    loss, outputs, finals = torch.zeros((), dtype=torch.float64), [], []
    for n, (start, end) in enumerate(itertools.pairwise(borders)):
        o, final = retention(
            *(x[:, start:end] for x in args[:3]),
            args[3],
            initial_state=args[4][n : n + 1],
            impl="recurrent",
        )
        loss = loss + o.sin().sum() + (final * final.cos()).sum()
        outputs.append(o)
        finals.append(final)
    separate = [torch.cat(outputs, 1), torch.cat(finals), *torch.autograd.grad(loss, args)]
    for ours, exact in zip(packed, separate, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_steps_are_one_sequence() -> None:
    q, k, v, decay, state = inputs(5, -0.3, torch.float32)
    whole, final = retention(q, k, v, decay, initial_state=state, scale=2.0)
    outputs = []
    with torch.no_grad():
        state = state.clone()
        for t in range(5):
            o, state = retention_step(q[:, t], k[:, t], v[:, t], decay, state, scale=2.0)
            outputs.append(o)
    torch.testing.assert_close(torch.stack(outputs, 1), whole)
    torch.testing.assert_close(state, final)


def test_low_precision_in_float32_states_and_no_final_state() -> None:
    *args, _ = (x.detach().bfloat16() for x in inputs(5, -0.3, torch.float32))
    o, final = retention(*args)
    assert (o.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    assert retention(*args, output_final_state=False)[1] is None


def test_errors_name_the_argument() -> None:
    q, k, v, decay, state = inputs(4, -0.3, torch.float32)
    with pytest.raises(ValueError, match=r"log_decay: found shape \(1,\); allowed: \(2,\)"):
        retention(q, k, v, decay[:1])
    with pytest.raises(ValueError, match="impl: found 'slow'; allowed: chunked, recurrent"):
        retention(q, k, v, decay, impl="slow")
    with pytest.raises(TypeError, match=r"q: found dtype torch.int64"):
        retention(q.long(), k, v, decay)
    with pytest.raises(ValueError, match=r"q: found shape \(2, 0, 2, 8\); allowed: \[B, T, H, K\]"):
        retention(q[:, :0], k[:, :0], v[:, :0], decay)
    with pytest.raises(ValueError, match=r"q: found shape \(2, 4, 2, 8\); allowed: \(1, 4, 2, 8\)"):
        retention(q, k, v, decay, cu_seqlens=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"initial_state: found shape \(1, 2, 8, 12\)"):
        retention(q, k, v, decay, initial_state=state[:1])
    with pytest.raises(TypeError, match=r"state: found dtype torch.bfloat16; allowed: float32"):
        retention_step(q[:, 0], k[:, 0], v[:, 0], decay, state.bfloat16())
