"""One test of the contract over all mixers: however a sequence is cut, the outputs agree."""

import random
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from forgetmenot.mixers.base import Mixer, Place
from forgetmenot.plugins import load, names

# Small instances of every mixer: a new mixer needs an entry here.
HIDDEN = 24
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "attention": [
        {"heads": 4, "kv_heads": 2, "head_dim": 8},
        {"heads": 4, "kv_heads": 4, "head_dim": 8, "window": 7},
        {"heads": 2, "kv_heads": 1, "head_dim": 8, "window": 1, "rope_theta": None},
    ],
    "gdn": [{"heads": 2, "key_dim": 8, "value_dim": 12}],
    "lte": [
        {"heads": 4, "kv_heads": 2, "head_dim": 8, "window": 9, "sink": 2, "budget": 7},
        {"heads": 2, "kv_heads": 2, "head_dim": 8, "window": 6, "sink": 0, "budget": None},
    ],
    "rwkv4_channel": [{"width": 40}],
    "rwkv4_time": [{}],
    "swiglu": [{"width": 40}],
}
Case = tuple[str, dict[str, Any]]
CASES = [(name, options) for name, many in OPTIONS.items() for options in many]
LENGTHS = [1, 2, 5, 16, 33]  # the longest is beyond every window + budget above


@pytest.fixture(params=CASES, ids=[f"{name}-{n}" for n, (name, _) in enumerate(CASES)])
def mixer_case(request: pytest.FixtureRequest) -> Case:
    """Name and options of one instance."""
    case: Case = request.param
    return case


def make(case: Case) -> Mixer:
    """An eval-mode float64 mixer whose eviction scores are spread around zero."""
    name, options = case
    torch.manual_seed(0)
    module = load("mixers", name)
    mixer = module.Mixer(Place(HIDDEN, 1, 3), module.Options(**options)).double().eval()
    if name == "lte":
        with torch.no_grad():
            mixer.scorer.project.bias.zero_()
            mixer.scorer.project.weight.mul_(8)
    return mixer


def in_segments(mixer: Mixer, x: torch.Tensor, lengths: list[int], state: Any = None) -> Any:
    """Outputs of the segments joined, and the last state."""
    outputs = []
    for segment in x.split(lengths, 1):
        y, state, _ = mixer(segment, state)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def cuts(length: int) -> list[list[int]]:
    """Prefill + steps, steps only, and three random chunkings."""
    half = length // 2
    ways = [[1] * length, [length - half, *[1] * half]]
    rng = random.Random(length)
    for _ in range(3):
        way, left = [], length
        while left:
            way.append(rng.randint(1, left))
            left -= way[-1]
        ways.append(way)
    return ways


def test_every_mixer_is_tested() -> None:
    assert sorted(OPTIONS) == names("mixers")


@pytest.mark.parametrize("length", LENGTHS)
def test_full_pass_equals_any_cut(mixer_case: Case, length: int) -> None:
    mixer = make(mixer_case)
    x = torch.randn(3, length, HIDDEN, dtype=torch.float64)
    whole, final, _ = mixer(x)
    for way in cuts(length):
        pieces, last = in_segments(mixer, x, way)
        torch.testing.assert_close(pieces, whole, rtol=1e-9, atol=1e-9)
        for a, b in zip(tree_leaves(last), tree_leaves(final), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", LENGTHS)
def test_left_padding_changes_nothing(mixer_case: Case, length: int) -> None:
    mixer = make(mixer_case)
    tokens = [length, max(1, length // 2), 1]
    x = torch.randn(3, length, HIDDEN, dtype=torch.float64)
    more = torch.randn(3, 12, HIDDEN, dtype=torch.float64)
    mask = torch.stack([torch.arange(length) >= length - n for n in tokens])
    padded, state, _ = mixer(x, mask_BL=mask)
    continued, _ = in_segments(mixer, more, [5, 1, 6], state)
    for b, n in enumerate(tokens):
        alone, alone_state, _ = mixer(x[b : b + 1, length - n :])
        torch.testing.assert_close(padded[b : b + 1, length - n :], alone, rtol=1e-9, atol=1e-9)
        alone, _, _ = mixer(more[b : b + 1], alone_state)
        torch.testing.assert_close(continued[b : b + 1], alone, rtol=1e-9, atol=1e-9)


def test_float32_error_is_of_its_own_precision(mixer_case: Case) -> None:
    mixer = make(mixer_case)
    x = torch.randn(2, 33, HIDDEN, dtype=torch.float64)
    exact, _, _ = mixer(x)
    single = mixer.float()
    full, _, _ = single(x.float())
    pieces, _ = in_segments(single, x.float(), [17, *[1] * 16])
    full_error, piece_error = ((y - exact).norm() for y in (full, pieces))
    assert full_error <= 1e-4 * exact.norm()
    assert piece_error <= 2 * full_error + 1e-5 * exact.norm()


def test_gradients_are_finite_and_reach_everything(mixer_case: Case) -> None:
    mixer = make(mixer_case).train()
    x = torch.randn(2, 33, HIDDEN, dtype=torch.float64, requires_grad=True)
    y, _, _ = mixer(x)
    y.square().sum().backward()
    for name, parameter in [("x", x), *mixer.named_parameters()]:
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_state_has_the_declared_size(mixer_case: Case) -> None:
    mixer = make(mixer_case).float()
    for length in LENGTHS:
        _, state, _ = mixer(torch.randn(1, length, HIDDEN))
        content = [x for x in tree_leaves(state) if x.is_floating_point()]
        found = sum(x.numel() * x.element_size() for x in content)
        uncapped = mixer_case[1].get("budget", 0) is None
        assert found == mixer.state_bytes(length) or (uncapped and found > 0)


def test_a_mask_is_refused_where_it_has_no_meaning(mixer_case: Case) -> None:
    if mixer_case[0] == "swiglu":  # stateless: a mask has nothing to say
        return
    mixer = make(mixer_case)
    x = torch.randn(1, 4, HIDDEN, dtype=torch.float64)
    _, state, _ = mixer(x)
    with pytest.raises(ValueError, match="only at a sequence's start"):
        mixer(x, state, mask_BL=torch.ones(1, 4, dtype=torch.bool))


def test_meta_build_then_reset_initialises_everything(mixer_case: Case) -> None:
    name, options = mixer_case
    module = load("mixers", name)
    with torch.device("meta"):
        mixer = module.Mixer(Place(HIDDEN, 1, 3), module.Options(**options))
    mixer = mixer.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.fill_(torch.nan)
    mixer.reset_parameters()
    for parameter_name, parameter in mixer.named_parameters():
        assert torch.isfinite(parameter).all(), parameter_name
        if isinstance(mixer.get_submodule(parameter_name.rpartition(".")[0]), torch.nn.Linear):
            expected = parameter.shape[1] ** -0.5
            assert abs(parameter.std() / expected - 1) < 0.35, parameter_name
            assert abs(parameter.mean()) < expected / 2, parameter_name
