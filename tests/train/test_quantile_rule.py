"""The quantile controller: kept tokens come into their band, and no gradient moves the bias."""

import pytest
import torch
from torch import nn

from forgetmenot.mixers.base import Place
from forgetmenot.mixers.lte import Mixer, Options
from forgetmenot.train.options import Options as TrainOptions
from forgetmenot.train.quantile_rule import QuantileController

LENGTH, BUDGET = 200, 40


def made(shared: str = "head", layers: int = 2, **options: object) -> QuantileController:
    torch.manual_seed(0)
    lte = Options(
        heads=4, kv_heads=2, head_dim=8, window=16, budget=BUDGET, dropout=0.0,
        router_shared=shared,  # type: ignore[arg-type]
    )  # fmt: skip
    mixers = [Mixer(Place(hidden=16), lte) for _ in range(layers)]
    for mixer in mixers[1:]:
        mixer.share(mixers[0])
    train = TrainOptions(sparsity_rule="quantile", **options)  # type: ignore[arg-type]
    return QuantileController(nn.ModuleList(mixers), train)


def step(to: QuantileController, number: int, x_BLD: torch.Tensor, **call: object) -> None:
    to.begin_step(number)
    assert to.penalty([layer(x_BLD, need_state=False, **call)[2] for layer in to.layers]) is None
    to.end_step(number)


def kept(to: QuantileController, x_BLD: torch.Tensor) -> torch.Tensor:
    """Mean kept tokens of a sequence [layers, H], the margin left out."""
    scores = [layer(x_BLD, need_state=False)[2]["score_BTH"] for layer in to.layers]
    counted = [
        score[:, : -layer.receptive_margin] for score, layer in zip(scores, to.layers, strict=True)
    ]
    return torch.stack([(s > 0).sum(1).float().mean(0) for s in counted])


def test_every_head_is_in_its_band_after_one_step_on_the_same_sequences() -> None:
    to, x = made(), torch.randn(8, LENGTH, 16)
    assert (kept(to, x).mean() > 2 * BUDGET).all()  # the scorer begins with most kept
    step(to, 1, x)
    # 39 a sequence is the middle of the band [38, 40]
    assert torch.allclose(kept(to, x), torch.full((2, 2), 39.0), atol=0.13)


def test_drifting_scores_stay_in_the_band() -> None:
    to = made()
    counts = []
    for number in range(1, 201):
        with torch.no_grad():
            for layer in to.layers:
                layer.scorer.project.weight.mul_(1.001)
        step(to, number, torch.randn(32, LENGTH, 16))
        counts.append(to.kept_KS.amax(0))
    last = torch.stack(counts[60:])  # the average of the counts begins at the length
    assert (last >= 0.95 * BUDGET).float().mean() > 0.99
    assert (last <= BUDGET).float().mean() > 0.99


def test_a_head_that_lost_all_its_tokens_gets_them_back() -> None:
    to, x = made(), torch.randn(8, LENGTH, 16)
    with torch.no_grad():
        to.layers[0].keep_bias.fill_(-50.0)
    assert (kept(to, x)[0] == 0).all()
    step(to, 1, x)
    assert torch.allclose(kept(to, x)[0], torch.tensor(39.0), atol=0.13)


@pytest.mark.parametrize("shared", ["layer", "all"])
def test_heads_of_one_scorer_share_the_mean_threshold(shared: str) -> None:
    to, x = made(shared), torch.randn(8, LENGTH, 16)
    step(to, 1, x)
    (raw_S,) = to.threshold_KS[to.threshold_KS.isfinite().all(1)]
    expected = [raw_S.mean()] * 2 if shared == "all" else [raw_S[:2].mean(), raw_S[2:].mean()]
    for layer, mean in zip(to.layers, expected, strict=True):
        assert torch.allclose(layer.keep_bias, -mean)


def test_sequences_that_cannot_overflow_are_left_alone() -> None:
    to = made()
    before = [layer.keep_bias.clone() for layer in to.layers]
    step(to, 1, torch.randn(4, BUDGET, 16))
    assert all(torch.equal(b, layer.keep_bias) for b, layer in zip(before, to.layers, strict=True))


def test_the_length_with_the_highest_threshold_decides() -> None:
    to = made()
    short, long = torch.randn(8, 60, 16), torch.randn(8, 400, 16)
    for number in range(1, 41):
        step(to, number, short if number % 2 else long)
    assert (kept(to, short) < 0.5 * BUDGET).all()
    assert ((kept(to, long) - 39).abs() < 1).all()


def test_packed_documents_count_as_sequences() -> None:
    to, x = made(), torch.randn(1, 2 * LENGTH, 16)
    step(to, 1, x, cu_seqlens=torch.tensor([0, LENGTH, 2 * LENGTH]))
    packed = [layer.keep_bias.clone() for layer in to.layers]
    to = made()
    step(to, 1, x.unflatten(1, (2, LENGTH))[0])
    for layer, bias in zip(to.layers, packed, strict=True):
        assert torch.allclose(layer.keep_bias, bias, atol=1e-6)


def test_before_its_start_the_bias_is_the_optimizers_and_afterwards_not() -> None:
    to, x = made(steps=4, sparsity_start=0.5), torch.randn(2, LENGTH, 16)
    for number in (1, 2, 3):
        before = [layer.keep_bias.detach().clone() for layer in to.layers]
        to.begin_step(number)
        results = [layer(x, need_state=False) for layer in to.layers]
        to.penalty([aux for _, _, aux in results])
        sum(y.square().sum() for y, _, _ in results).backward()
        to.drop_frozen(number)
        taken = number > 2
        assert all((layer.keep_bias.grad is None) == taken for layer in to.layers)
        to.end_step(number)
        for layer, old in zip(to.layers, before, strict=True):
            assert torch.equal(layer.keep_bias, old) != taken


def test_state_survives_as_tensors() -> None:
    first, second = made(), made()
    x = torch.randn(4, LENGTH, 16)
    step(first, 1, x)
    second.load_state_tensors(first.state_tensors())
    for layer, other in zip(first.layers, second.layers, strict=True):
        other.load_state_dict(layer.state_dict())
    y = torch.randn(4, LENGTH, 16)
    for to in (first, second):
        step(to, 2, y)
    assert first.report() == second.report()
    assert set(first.report()) == {"kept", "bias"}


def test_ranks_are_averaged() -> None:
    joint, x = made(), torch.randn(8, LENGTH, 16)
    step(joint, 1, x)
    halves = [made(), made()]
    parts: list[torch.Tensor] = []
    for to, half in zip(halves, x.chunk(2), strict=True):
        to.begin_step(1)
        to.penalty([layer(half, need_state=False)[2] for layer in to.layers])
        assert to._sums_K2S is not None
        parts.append(to._sums_K2S)
    mean = (parts[0] + parts[1]) / 2
    halves[0].end_step(1, lambda sums: mean if sums.shape == mean.shape else sums)
    # the mean of two ranks' thresholds is that of the joint batch but for sampling
    for ours, theirs in zip(halves[0].layers, joint.layers, strict=True):
        assert torch.allclose(ours.keep_bias, theirs.keep_bias, atol=0.05)
