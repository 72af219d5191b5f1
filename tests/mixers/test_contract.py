"""One test of the contract over all mixers: however a sequence is cut, the outputs agree."""

import contextlib
import copy
import random
from typing import Any

import pytest
import torch
from torch import nn

from forgetmenot.mixers.base import Mixer, Place, select_rows
from forgetmenot.plugins import load, names

# Small instances of every mixer: a new mixer needs an entry here.
HIDDEN = 24
LTE = {"heads": 4, "kv_heads": 2, "head_dim": 8, "window": 9, "sink": 2, "budget": 7}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "attention": [
        {"heads": 4, "kv_heads": 2, "head_dim": 8},
        {"heads": 4, "kv_heads": 4, "head_dim": 8, "window": 7},
        {"heads": 2, "kv_heads": 1, "head_dim": 8, "window": 1, "rope_theta": None},
    ],
    "eviction": [  # the policy oracle has to be told what to keep: tests/mixers/test_eviction.py
        {**LTE, "policy": "sink"},
        {**LTE, "policy": "sink", "sink": 0, "budget": 0},
        {**LTE, "policy": "random", "window": 1, "sink": 0},
        {**LTE, "policy": "recency"},
        {**LTE, "policy": "h2o"},
        {**LTE, "policy": "tova", "kv_heads": 4, "window": 1, "sink": 0},
    ],
    "gdn": [{"heads": 2, "key_dim": 8, "value_dim": 12}],
    "lte": [
        LTE,
        {"heads": 2, "kv_heads": 2, "head_dim": 8, "window": 6, "sink": 0, "budget": None},
        {**LTE, "window": 6, "router_shared": "layer", "router_score": "relu"},
        {**LTE, "kernels": [1, 1], "dilations": [1, 1], "window": 3, "budget": 2},
        {**LTE, "kernels": [], "dilations": [], "window": 1, "sink": 0, "router_grad": False},
    ],
    "nsa": [
        {"heads": 4, "kv_heads": 2, "head_dim": 8, "block": 4, "selected": 3, "window": 5},
        {"heads": 2, "kv_heads": 2, "head_dim": 8, "block": 2, "selected": 4, "window": 1},
    ],
    "retention": [
        {"heads": 3, "key_dim": 8},
        {"heads": 2, "key_dim": 5, "value_dim": 7, "rope_theta": None},
    ],
    "rwkv4_channel": [{"width": 40}],
    "rwkv4_time": [{}],
    "rwkv7_channel": [{"width": 40}],
    "rwkv7_time": [
        {"heads": 2, "head_dim": 5, "decay_rank": 6, "rate_rank": 7, "gate_rank": 9},
    ],
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


def tensors(state: Any) -> list[torch.Tensor]:
    """The floating-point tensors of a state."""
    if isinstance(state, torch.Tensor):
        return [state] if state.is_floating_point() else []
    return [t for part in state for t in tensors(part)] if isinstance(state, tuple) else []


def test_every_mixer_is_tested() -> None:
    assert sorted(OPTIONS) == names("mixers")


# With gradients a step is a segment of one token, in new tensors; without, it may write in place.
@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_full_pass_equals_any_cut(mixer_case: Case, length: int, learning: bool) -> None:
    mixer = make(mixer_case)
    x = torch.randn(3, length, HIDDEN, dtype=torch.float64)
    more = torch.randn(3, 40, HIDDEN, dtype=torch.float64)
    with contextlib.nullcontext() if learning else torch.no_grad():
        whole, final, _ = mixer(x)
        ways = cuts(length)
        after = [
            in_segments(mixer, more, way, copy.deepcopy(final) if not learning else final)[0]
            for way in ([40], [1] * 40, [7, *[1] * 13, 20])
        ]
        for way in ways:
            pieces, last = in_segments(mixer, x, way)
            torch.testing.assert_close(pieces, whole, rtol=1e-9, atol=1e-9)
            continued, _ = in_segments(mixer, more, [3, *[1] * 36, 1], last)
            for expected in after:
                torch.testing.assert_close(continued, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_left_padding_changes_nothing(mixer_case: Case, length: int, learning: bool) -> None:
    mixer = make(mixer_case)
    tokens = [length, max(1, length // 2), 1]
    x = torch.randn(3, length, HIDDEN, dtype=torch.float64)
    more = torch.randn(3, 40, HIDDEN, dtype=torch.float64)
    mask = torch.stack([torch.arange(length) >= length - n for n in tokens])
    with contextlib.nullcontext() if learning else torch.no_grad():
        padded, state, _ = mixer(x, mask_BL=mask)
        continued, _ = in_segments(mixer, more, [5, *[1] * 29, 6], state)
        for b, n in enumerate(tokens):
            alone, alone_state, _ = mixer(x[b : b + 1, length - n :])
            torch.testing.assert_close(padded[b : b + 1, length - n :], alone, rtol=1e-9, atol=1e-9)
            alone, _, _ = mixer(more[b : b + 1], alone_state)
            torch.testing.assert_close(continued[b : b + 1], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_packed_documents_are_read_one_by_one(mixer_case: Case, training: bool) -> None:
    mixer = make(mixer_case).train(training)
    for module in mixer.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    lengths = [1, 33, 2, 17, 1, 5]
    x = torch.randn(1, sum(lengths), HIDDEN, dtype=torch.float64, requires_grad=True)
    leaves = [x, *mixer.parameters()]
    weight = torch.randn_like(x)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)

    packed, state, _ = mixer(x, cu_seqlens=cu_seqlens)
    found = torch.autograd.grad((packed * weight).sum(), leaves, retain_graph=True)
    pieces = [mixer(document) for document in x.split(lengths, 1)]
    looped = torch.cat([y for y, _, _ in pieces], 1)
    expected = torch.autograd.grad((looped * weight).sum(), leaves, retain_graph=True)
    torch.testing.assert_close(packed, looped, rtol=1e-9, atol=1e-9)
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-9)

    more = torch.randn(len(lengths), 12, HIDDEN, dtype=torch.float64)
    continued, _ = in_segments(mixer, more, [4, 1, 7], state)
    for n, (_, alone, _) in enumerate(pieces):
        y, _, _ = mixer(more[n : n + 1], alone)
        torch.testing.assert_close(continued[n : n + 1], y, rtol=1e-9, atol=1e-9)
    without_state, none, _ = mixer(x, cu_seqlens=cu_seqlens, need_state=False)
    torch.testing.assert_close(without_state, packed)
    assert none is None


def test_float32_error_is_of_its_own_precision(mixer_case: Case) -> None:
    mixer = make(mixer_case)
    x = torch.randn(2, 33, HIDDEN, dtype=torch.float64)
    with torch.no_grad():
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
    declared = [mixer.state_bytes(length) for length in LENGTHS]
    capped = mixer_case[1].get("budget", 0) is not None  # otherwise it depends on the scores
    for length, expected in zip(LENGTHS, declared, strict=True):
        with torch.no_grad():
            _, state, _ = mixer(torch.randn(1, length, HIDDEN))
            found = sum(x.numel() * x.element_size() for x in tensors(state))
            assert found == expected or (not capped and found >= expected)
            for _ in range(9):
                _, state, _ = mixer(torch.randn(1, 1, HIDDEN), state)
            found = sum(x.numel() * x.element_size() for x in tensors(state))
        if len(set(declared)) == 1 and capped:
            assert found == expected
        elif capped:  # room for tokens to come may be as large as the content
            assert mixer.state_bytes(length + 9) <= found <= 2 * mixer.state_bytes(length + 9)


def test_operations_grow_only_with_what_is_seen(mixer_case: Case) -> None:
    mixer = make(mixer_case)
    linear = 2 * sum(m.weight.numel() for m in mixer.modules() if isinstance(m, nn.Linear))
    counts = [mixer.flops(context) for context in (0, 10, 1000, 2000)]
    assert counts == sorted(counts)
    assert counts[0] >= linear
    if mixer.state_bytes(1000) == mixer.state_bytes(2000):
        capped = mixer_case[1].get("budget", 0) is not None
        assert (counts[2] == counts[3]) == capped


def test_padding_and_packing_are_refused_where_they_have_no_meaning(mixer_case: Case) -> None:
    mixer = make(mixer_case)
    x = torch.randn(1, 4, HIDDEN, dtype=torch.float64)
    mask, borders = torch.ones(1, 4, dtype=torch.bool), torch.tensor([0, 4])
    _, state, _ = mixer(x)
    with pytest.raises(ValueError, match="mask: found beside a state"):
        mixer(x, state, mask_BL=mask)
    with pytest.raises(ValueError, match="cu_seqlens: found beside a state"):
        mixer(x, state, cu_seqlens=borders)
    with pytest.raises(ValueError, match="cu_seqlens: found beside a mask"):
        mixer(x, mask_BL=mask, cu_seqlens=borders)
    with pytest.raises(ValueError, match="cu_seqlens: found beside 2 rows"):
        mixer(torch.cat((x, x)), cu_seqlens=borders)
    with pytest.raises(ValueError, match="allowed: left padding only"):
        mixer(x, mask_BL=torch.tensor([[True, True, False, False]]))
    with pytest.raises(ValueError, match="found a row without a token"):
        mixer(x, mask_BL=~mask)
    with pytest.raises(ValueError, match="allowed: integers that rise strictly from 0 to 4"):
        mixer(x, cu_seqlens=torch.tensor([0, 2, 2, 4]))


@torch.no_grad()
def test_a_stale_state_is_refused_and_copies_are_not(mixer_case: Case) -> None:
    mixer = make(mixer_case)
    x = torch.randn(2, 20, HIDDEN, dtype=torch.float64)
    token = torch.randn(2, 1, HIDDEN, dtype=torch.float64)
    _, state, _ = mixer(x)
    copied, swapped = copy.deepcopy(state), select_rows(state, torch.tensor([1, 0]))
    # without a cap, and where the state is small, every call makes new tensors
    in_place = mixer_case[0] not in ("rwkv4_channel", "rwkv7_channel", "swiglu")
    in_place &= mixer_case[1].get("budget", 0) is not None
    # a growing cache makes room in new tensors with its first token: from the second on in place
    for before in (state, mixer(x, None)[1]):
        first, after, _ = mixer(token, before)
        second, _, _ = mixer(token, after)
        if in_place:
            for more in (token, x):
                with pytest.raises(ValueError, match="state: found one that was continued already"):
                    mixer(more, after)
        else:
            torch.testing.assert_close(mixer(token, after)[0], second)
    torch.testing.assert_close(mixer(token, copied)[0], first)
    torch.testing.assert_close(mixer(token.flip(0), swapped)[0].flip(0), first)


def test_meta_build_then_reset_initialises_everything(mixer_case: Case) -> None:
    name, options = mixer_case
    module = load("mixers", name)
    with torch.device("meta"):
        mixer = module.Mixer(Place(HIDDEN, 1, 3), module.Options(**options))
    mixer = mixer.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*mixer.parameters(), *mixer.buffers()):
            tensor.fill_(torch.nan)
    mixer.reset_parameters()
    for buffer_name, buffer in mixer.named_buffers():
        assert torch.isfinite(buffer).all(), buffer_name
    for parameter_name, parameter in mixer.named_parameters():
        assert torch.isfinite(parameter).all(), parameter_name
        if isinstance(mixer.get_submodule(parameter_name.rpartition(".")[0]), torch.nn.Linear):
            expected = parameter.shape[1] ** -0.5
            assert abs(parameter.std() / expected - 1) < 0.35, parameter_name
            assert abs(parameter.mean()) < expected / 2, parameter_name


def test_the_residual_map_may_start_smaller(mixer_case: Case) -> None:
    name, options = mixer_case
    if name.startswith("rwkv4"):  # not among the LTE paper's models
        return
    module = load("mixers", name)
    torch.manual_seed(0)
    mixer = module.Mixer(Place(HIDDEN, 1, 48, 0.006, "rescale"), module.Options(**options))
    residual = getattr(mixer, {"swiglu": "down", "rwkv7_channel": "value"}.get(name, "out"))
    # Kaiming-uniform with a = sqrt 5 has a bound of 1 / sqrt(fan in)
    bound = residual.in_features**-0.5 / 48**0.5
    assert residual.weight.abs().max() <= bound
    assert residual.weight.abs().max() > 0.9 * bound
    others = [m for m in mixer.modules() if isinstance(m, nn.Linear) and m is not residual]
    for linear in others:
        assert abs(linear.weight.std() / 0.006 - 1) < 0.35
