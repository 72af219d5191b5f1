"""The chunked gated delta rule against its definition in float64."""

import itertools

import pytest
import torch

from forgetmenot_kernels.gated_delta_rule import gated_delta_rule, gated_delta_rule_step


def inputs(
    time: int, log_decay: float, dtype: torch.dtype, batch: int = 2, states: int | None = None
) -> list[torch.Tensor]:
    torch.manual_seed(time)
    heads, key_dim, value_dim = 2, 8, 12
    unit = torch.nn.functional.normalize
    q, k = (unit(torch.randn(batch, time, heads, key_dim), dim=-1) for _ in range(2))
    v = torch.randn(batch, time, heads, value_dim)
    g = log_decay * torch.rand(batch, time, heads)
    beta = torch.rand(batch, time, heads)
    state = torch.randn(states or batch, heads, key_dim, value_dim)
    return [x.to(dtype).requires_grad_() for x in (q, k, v, g, beta, state)]


def run(args: list[torch.Tensor], impl: str, **options: object) -> list[torch.Tensor]:
    """Outputs and every gradient of a loss that uses output and final state."""
    *args, state = args
    o, final = gated_delta_rule(
        *args, initial_state=state, output_final_state=True, impl=impl, **options
    )
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
    options = {"output_final_state": True}
    whole, final = gated_delta_rule(*args, initial_state=state, **options)
    first, middle = gated_delta_rule(*(x[:, :37] for x in args), initial_state=state, **options)
    second, last = gated_delta_rule(*(x[:, 37:] for x in args), initial_state=middle, **options)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(last, final)


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [(torch.float64, 1e-12, 1e-12), (torch.bfloat16, 2**-7, 1e-6)]
)
def test_l2norm_is_the_division_by_the_length(dtype: torch.dtype, rtol: float, atol: float) -> None:
    q, k, *rest, _ = inputs(70, -0.1, torch.float64)
    q, k, rest = (3 * q).to(dtype), (0.5 * k).to(dtype), [x.to(dtype) for x in rest]
    unit = [
        (x.double() / (x.double().square().sum(-1, keepdim=True) + 1e-6).sqrt()) for x in (q, k)
    ]
    exact, _ = gated_delta_rule(*unit, *(x.double() for x in rest), scale=0.7)
    ours, none = gated_delta_rule(q, k, *rest, scale=0.7, qk_l2norm=True)
    assert none is None
    assert ours.dtype == dtype
    # in bfloat16 nothing but the output is rounded
    torch.testing.assert_close(ours.double(), exact, rtol=rtol, atol=atol)


@pytest.mark.parametrize("impl", ["chunked", "recurrent"])
def test_packed_documents_are_separate_sequences(impl: str) -> None:
    lengths = [1, 2, 66, 1, 5]
    borders = [0, 1, 3, 69, 70, 75]
    args = inputs(75, -0.1, torch.float64, batch=1, states=len(lengths))
    packed = run(args, impl, cu_seqlens=torch.tensor(borders), qk_l2norm=True)
    loss, outputs, finals = torch.zeros((), dtype=torch.float64), [], []
    for n, (start, end) in enumerate(itertools.pairwise(borders)):
        o, final = gated_delta_rule(
            *(x[:, start:end] for x in args[:-1]),
            initial_state=args[-1][n : n + 1],
            output_final_state=True,
            qk_l2norm=True,
            impl="recurrent",
        )
        loss = loss + o.sin().sum() + (final * final.cos()).sum()
        outputs.append(o)
        finals.append(final)
    separate = [torch.cat(outputs, 1), torch.cat(finals), *torch.autograd.grad(loss, args)]
    for ours, exact in zip(packed, separate, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_steps_are_one_sequence() -> None:
    *args, state = inputs(5, -0.3, torch.float32)
    whole, final = gated_delta_rule(
        *args, initial_state=state, output_final_state=True, qk_l2norm=True, scale=2.0
    )
    outputs = []
    with torch.no_grad():
        state = state.clone()
        for t in range(5):
            o, state = gated_delta_rule_step(
                *(x[:, t] for x in args), state, qk_l2norm=True, scale=2.0
            )
            outputs.append(o)
    torch.testing.assert_close(torch.stack(outputs, 1), whole)
    torch.testing.assert_close(state, final)


def test_errors_name_the_argument() -> None:
    *args, state = inputs(4, -0.1, torch.float32)
    with pytest.raises(ValueError, match=r"g: found shape \(2, 3, 2\); allowed: \(2, 4, 2\)"):
        gated_delta_rule(*args[:3], args[3][:, :3], args[4])
    with pytest.raises(ValueError, match="impl: found 'slow'; allowed: chunked, recurrent"):
        gated_delta_rule(*args, impl="slow")
    with pytest.raises(TypeError, match=r"q: found dtype torch.int64"):
        gated_delta_rule(args[0].long(), *args[1:])
    with pytest.raises(ValueError, match=r"q: found shape \(2, 0, 2, 8\); allowed: \[B, T, H, K\]"):
        gated_delta_rule(*(x[:, :0] for x in args))
    with pytest.raises(ValueError, match=r"q: found shape \(2, 4, 2, 8\); allowed: \(1, 4, 2, 8\)"):
        gated_delta_rule(*args, cu_seqlens=torch.tensor([0, 4]))
    row = [x[:1] for x in args]
    with pytest.raises(ValueError, match=r"cu_seqlens: found \[0, 3\]"):
        gated_delta_rule(*row, cu_seqlens=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"initial_state: found shape \(1, 2, 8, 12\)"):
        gated_delta_rule(*row, cu_seqlens=torch.tensor([0, 1, 4]), initial_state=state[:1])
    with pytest.raises(TypeError, match=r"state: found dtype torch.bfloat16; allowed: float32"):
        gated_delta_rule_step(*(x[:, 0] for x in args), state.bfloat16())
