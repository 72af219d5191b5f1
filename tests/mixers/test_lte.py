"""LTE's own properties: scorer, straight-through gradient, warm-up, state of constant size."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

from forgetmenot.mixers import attention, lte
from forgetmenot.mixers.base import Place
from forgetmenot.mixers.lte import Mixer, Options
from forgetmenot.mixers.lte_scorer import HeadwiseConv, Scorer

SIZES: dict[str, Any] = {"heads": 4, "kv_heads": 2, "head_dim": 8}


def test_headwise_convolution_is_a_grouped_convolution() -> None:
    conv = HeadwiseConv(heads=3, fan_in=4, fan_out=5, taps=3, dilation=2).double()
    conv.reset_parameters()
    x_HBTI = torch.randn(3, 2, 11, 4, dtype=torch.float64)
    weight = conv.weight.unflatten(1, (3, 4)).permute(0, 3, 2, 1).flatten(0, 1)
    x = x_HBTI.permute(1, 0, 3, 2).flatten(1, 2)
    y = F.conv1d(x, weight, conv.bias.flatten(), padding=2, dilation=2, groups=3)
    torch.testing.assert_close(conv(x_HBTI), y.unflatten(1, (3, 5)).permute(1, 0, 3, 2))


def test_scorer_starts_by_keeping_and_looks_margin_far() -> None:
    torch.manual_seed(0)
    scorer = Scorer(2, 8, [3, 3, 3], [2, 2, 2], 0.0).eval()
    scorer.reset_parameters()
    assert scorer.margin == 6
    pairs = torch.randn(1, 40, 2, 16)
    token = torch.ones(1, 40, dtype=torch.bool)
    before = scorer(pairs, token)
    pairs[:, 20] += 1
    moved = (scorer(pairs, token) - before).abs().amax((0, 2)).nonzero().flatten()
    assert 20 in moved
    assert moved.min() >= 20 - 6
    assert moved.max() <= 20 + 6
    with torch.no_grad():
        for conv in scorer.convs:
            conv.weight.mul_(1e-3)
    expected = torch.full((1, 40, 2), 0.5)  # the projection's initial bias
    torch.testing.assert_close(scorer(pairs, token), expected, atol=0.05, rtol=0)


def test_parameters_per_head_are_those_of_the_specification() -> None:
    scorer = Scorer(1, 64, [3, 3, 3], [2, 2, 2], 0.1)
    assert sum(p.numel() for p in scorer.parameters()) == 32_385


def test_score_gradient_is_that_of_a_gate_at_one() -> None:
    """dL/ds = <v, dL/dv'>: as if values were s v at s = 1, though the forward pass uses v."""
    torch.manual_seed(0)
    mixer = Mixer(Place(24), Options(**SIZES, window=6, sink=0, dropout=0.0)).double().train()
    with torch.no_grad():
        mixer.scorer.project.weight.mul_(0.01)  # so the bias decides: everything is kept
    x = torch.randn(2, 20, 24, dtype=torch.float64)
    y, _, aux = mixer(x)
    assert (aux["score_BTH"] > 0).all()
    (ours,) = torch.autograd.grad(y.sin().sum(), aux["score_BTH"])

    full = full_attention(mixer)
    gate = torch.ones(2, 20, 2, dtype=torch.float64, requires_grad=True)
    full.v.register_forward_hook(
        lambda _, __, out: (out.unflatten(-1, (2, 8)) * gate[..., None]).flatten(2)
    )
    (expected,) = torch.autograd.grad(full(x)[0].sin().sum(), gate)
    torch.testing.assert_close(ours, expected)


def full_attention(mixer: Mixer) -> attention.Mixer:
    """Full attention with the projections of an LTE mixer."""
    full = attention.Mixer(Place(24), attention.Options(**SIZES)).to(mixer.q.weight.dtype)
    full.load_state_dict({n: p for n, p in mixer.state_dict().items() if "scorer" not in n})
    return full


def test_router_off_sees_what_full_attention_sees_and_still_learns() -> None:
    torch.manual_seed(0)
    mixer = Mixer(Place(24), Options(**SIZES, window=6, sink=0)).train()
    mixer.router_on = False
    x = torch.randn(2, 30, 24)
    y, _, aux = mixer(x)
    assert (aux["score_BTH"] < 0).any()
    torch.testing.assert_close(y, full_attention(mixer)(x)[0])
    y.square().sum().backward()
    assert mixer.scorer.project.weight.grad is not None
    assert mixer.scorer.project.weight.grad.abs().sum() > 0


def test_state_stops_growing() -> None:
    mixer = Mixer(Place(24), Options(**SIZES, window=8, sink=1, budget=5)).eval()
    sizes = []
    state = None
    for _ in range(6):
        _, state, _ = mixer(torch.randn(1, 10, 24), state)
        sizes.append([x.shape for x in tree_leaves(state) if isinstance(x, torch.Tensor)])
    assert all(size == sizes[0] for size in sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "kv_heads: found 3; allowed: divisors of 4"),
        ({"window": 5}, "window: found 5; allowed: at least the margin 6"),
        ({"budget": 3}, "budget: found 3; allowed: at least sink 4"),
        ({"kernels": [3, 2, 3]}, r"kernels: found \[3, 2, 3\]; allowed: odd numbers"),
    ],
)
def test_options_that_cannot_work_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**{**SIZES, "window": 9, "sink": 4, "budget": 7, **change})


def test_with_the_count_held_a_shift_of_all_logits_has_no_gradient() -> None:
    torch.manual_seed(0)
    mixer = Mixer(Place(24), Options(**SIZES, window=6, dropout=0.0)).double().train()
    x = torch.randn(2, 40, 24, dtype=torch.float64)
    gradients = {}
    for held in (False, True):
        mixer.count_held = held
        mixer.zero_grad()
        mixer(x)[0].sin().sum().backward()
        gradients[held] = mixer.scorer.project.bias.grad, mixer.scorer.project.weight.grad
    assert gradients[False][0].abs().min() > 1e-3
    assert gradients[True][0].abs().max() < 1e-12
    assert gradients[True][1].abs().min() > 1e-6


def test_logits_above_the_threshold_are_differentiated_implicitly() -> None:
    """Against finite differences of the t that keeps sum(sigmoid(r - t)) as it is."""
    torch.manual_seed(0)
    r = torch.randn(1, 30, 1, dtype=torch.float64)

    def distance(r: torch.Tensor) -> torch.Tensor:
        low, high = -10.0, 10.0
        for _ in range(60):
            t = (low + high) / 2
            low, high = (t, high) if (r - t).sigmoid().sum() > total else (low, t)
        return r - t

    total = r.sigmoid().sum()
    weights = torch.randn_like(r)
    (ours,) = torch.autograd.grad((weights * lte._above_threshold(r.requires_grad_())).sum(), r)
    r = r.detach()
    for j in (0, 7, 29):
        step = torch.zeros_like(r)
        step[0, j] = 1e-5
        slope = ((distance(r + step) - distance(r - step)) * weights).sum() / 2e-5
        assert ours[0, j, 0].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-7)
