"""The policies of eviction against what they say they keep."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from forgetmenot import model as models
from forgetmenot.data import mqar
from forgetmenot.evaluate.recall import asked_later, sequence_accuracies
from forgetmenot.mixers import attention
from forgetmenot.mixers.base import Place
from forgetmenot.mixers.eviction import Mixer, Options
from forgetmenot.mixers.eviction_oracle import needed
from forgetmenot.mixers.eviction_scored import random_scores
from forgetmenot.mixers.rotary import rotate

HIDDEN = 12
BLOCK: dict[str, Any] = {"heads": 4, "kv_heads": 2, "head_dim": 4, "window": 4}


def make(policy: str, sink: int = 1, budget: int = 5, **more: Any) -> Mixer:
    torch.manual_seed(0)
    values = {**BLOCK, "policy": policy, "sink": sink, "budget": budget, **more}
    return Mixer(Place(HIDDEN), Options(**values)).double().eval()


def tokens(length: int, batch: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return 2 * torch.randn(batch, length, HIDDEN, dtype=torch.float64)


def kept_last(mixer: Mixer, x: torch.Tensor) -> list[list[list[int]]]:
    """Positions in the kept slots after x, sorted: a list for each sequence and head."""
    position_BHN = mixer(x)[1].cache.position_BHN
    return [[sorted(p for p in head if p >= 0) for head in row] for row in position_BHN.tolist()]


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
def test_recency_is_a_longer_window(training: bool) -> None:
    mixer = make("recency", sink=0).train(training)
    options = attention.Options(**{**BLOCK, "window": BLOCK["window"] + 5})
    window = attention.Mixer(Place(HIDDEN), options).double()
    window.load_state_dict(mixer.state_dict())
    x = tokens(30)
    torch.testing.assert_close(mixer(x)[0], window(x)[0])


@torch.no_grad()
def test_what_static_policies_keep() -> None:
    x = tokens(30)
    assert kept_last(make("sink", sink=3), x) == [[[0, 1, 2]] * 2] * 2
    # 26 tokens have left the window of the last query
    assert kept_last(make("recency", sink=2), x) == [[[0, 1, 23, 24, 25]] * 2] * 2
    scores = random_scores(torch.arange(26)[None], 7, range(2))[0].T
    best = [[0, *sorted((1 + row[1:].topk(4).indices).tolist())] for row in scores]
    assert kept_last(make("random", seed=7), x) == [best] * 2
    assert best[0] != best[1]


def test_random_scores_are_a_uniform_function_of_seed_head_and_position() -> None:
    position = torch.arange(4096)[None]
    scores = random_scores(position, 3, range(8))
    assert torch.equal(
        scores[:, 1000:1001, 2:4], random_scores(position[:, 1000:1001], 3, range(2, 4))
    )
    assert not torch.equal(scores, random_scores(position, 4, range(8)))
    assert scores.min() > 0
    assert scores.max() <= 1
    # 64 bins of 512 expected each: chi-square of 63 degrees, mean 63, deviation 11
    for part in (scores, random_scores(position + 2**40, -1, range(8))):
        counts = torch.histc(part, 64, 0, 1)
        assert ((counts - 512) ** 2 / 512).sum() < 63 + 5 * 11.3
    by_head = scores[0].T
    assert (torch.corrcoef(by_head) - torch.eye(8)).abs().max() < 0.08
    assert torch.corrcoef(torch.stack((by_head[0, 1:], by_head[0, :-1])))[0, 1].abs() < 0.08
    # a sample of 256 from 4096 is spread over the quarters of the past
    chosen = by_head.topk(256).indices // 1024
    for quarter in range(4):
        assert ((chosen == quarter).sum(1) - 64).abs().max() < 4 * 6.9


def simulated(mixer: Mixer, x_LD: torch.Tensor) -> tuple[torch.Tensor, list[set[int]]]:
    """One sequence, a token and a head at a time, by the text of the two papers and our rule."""
    o = mixer.options
    length = len(x_LD)
    position = torch.arange(length)[None]
    q = rotate(mixer.q(x_LD).view(1, length, o.heads, -1), position, o.rope_theta)[0]
    k = rotate(mixer.k(x_LD).view(1, length, o.kv_heads, -1), position, o.rope_theta)[0]
    v = mixer.v(x_LD).view(length, o.kv_heads, -1)
    y = torch.zeros(length, o.heads, o.head_dim, dtype=x_LD.dtype)
    group, all_kept = o.heads // o.kv_heads, []
    for h in range(o.kv_heads):
        kept: set[int] = set()
        score = [0.0] * length
        for i in range(length):
            j = i - o.window
            if j >= 0 and (len(kept) < o.budget or j < o.sink):
                kept.add(j)
            elif j >= 0:
                others = [p for p in kept if p >= o.sink]
                worst = min(others, key=lambda p: (score[p], -p), default=None)
                if worst is not None and score[j] > score[worst]:
                    kept = kept - {worst} | {j}
            seen = sorted(kept | set(range(max(0, j + 1), i + 1)))
            received = dict.fromkeys(seen, 0.0)
            for g in range(h * group, (h + 1) * group):
                weight = (k[seen, h] @ q[i, g] * o.head_dim**-0.5).softmax(0)
                y[i, g] = weight @ v[seen, h]
                for p, w in zip(seen, weight.tolist(), strict=True):
                    received[p] += w
            for p, w in received.items():
                score[p] = w + (score[p] if o.policy == "h2o" else 0.0)
        all_kept.append(kept)
    return mixer.out(y.flatten(1)), all_kept


@torch.no_grad()
@pytest.mark.parametrize("policy", ["h2o", "tova"])
@pytest.mark.parametrize("change", [{}, {"sink": 0, "window": 1}, {"sink": 2, "budget": 2}])
def test_received_attention_against_a_simulation(policy: str, change: dict[str, Any]) -> None:
    mixer, x = make(policy, **change), tokens(40)
    y, _, aux = mixer(x)
    assert torch.equal(y, mixer(x, need_state=False)[0])
    expected = [simulated(mixer, row) for row in x]
    torch.testing.assert_close(y, torch.stack([outputs for outputs, _ in expected]))
    assert kept_last(mixer, x) == [[sorted(head) for head in heads] for _, heads in expected]
    if not change:
        until_BTH = aux["visible_until_BTH"]
        for b, (_, heads) in enumerate(expected):
            for h, kept in enumerate(heads):
                assert set((until_BTH[b, :, h] >= 40).nonzero()[:, 0].tolist()) == kept
        assert expected[0][1] != [set(range(5))] * 2  # something was evicted


def test_without_room_nothing_is_kept() -> None:
    options = attention.Options(**BLOCK)
    window = attention.Mixer(Place(HIDDEN), options).double()
    for policy in ("h2o", "tova", "random"):
        mixer, x = make(policy, sink=0, budget=0), tokens(20)
        window.load_state_dict(mixer.state_dict())
        torch.testing.assert_close(mixer(x)[0], window(x)[0])


@pytest.mark.parametrize("policy", ["h2o", "tova"])
def test_gradients_pass_through_values_and_weights(policy: str) -> None:
    mixer = make(policy, budget=2, window=2)
    x = tokens(9, 1)
    with torch.no_grad():
        state = mixer(tokens(8, 1) + 1)[1]
        expected = [mixer(x)[0], mixer(x, copy.deepcopy(state))[0]]

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        after = mixer(x[:, :5])[1]
        return mixer(x)[0], mixer(x, state)[0], mixer(x[:, 5:], after)[0]

    x.requires_grad_()
    whole, continued, rest = run(x)
    torch.testing.assert_close([whole, continued, rest], [*expected, expected[0][:, 5:]])
    # decisions stay as they are under so small changes
    assert torch.autograd.gradcheck(run, (x,), fast_mode=True)


@torch.no_grad()
@pytest.mark.parametrize("policy", ["h2o", "tova", "oracle"])
def test_inference_policies_see_everything_in_training(policy: str) -> None:
    mixer = make(policy).train()
    options = attention.Options(**{**BLOCK, "window": None})
    full = attention.Mixer(Place(HIDDEN), options).double()
    full.load_state_dict(mixer.state_dict())
    x = tokens(30)
    y, state, _ = mixer(x)
    torch.testing.assert_close(y, full(x)[0])
    with pytest.raises(ValueError, match=r"state: found 26 kept slots .* allowed: 5"):
        mixer.eval()(x, state)


@torch.no_grad()
def test_the_oracle_keeps_what_it_is_told() -> None:
    mixer, x = make("oracle"), tokens(30)
    keep = torch.zeros(2, 30, dtype=torch.bool)
    keep[0, [4, 9, 20]] = True
    keep[1, [2, 3, 7, 8, 9, 10, 29]] = True
    with needed(mixer, keep):
        y, state, _ = mixer(x)
        # first come, first kept; the last is in the window
        assert kept_last(mixer, x) == [[[0, 4, 9, 20]] * 2, [[0, 2, 3, 7, 8]] * 2]
    with pytest.raises(ValueError, match="oracle: found no word on which tokens to keep"):
        mixer(x)

    for lengths in ([11, 1, 1, 12, 5], [1] * 30):
        pieces, after = [], None
        for part, told in zip(x.split(lengths, 1), keep.split(lengths, 1), strict=True):
            with needed(mixer, told):
                piece, after, _ = mixer(part, after)
            pieces.append(piece)
        torch.testing.assert_close(torch.cat(pieces, 1), y)
    # the token at 29 was marked, those after are not
    for part in x[:, :8].split([1, 1, 6], 1):
        _, state, _ = mixer(part, state)
    kept_BHN = state.cache.position_BHN
    assert [sorted(row[0].tolist()) for row in kept_BHN] == [[-1, 0, 4, 9, 20], [0, 2, 3, 7, 8]]


@torch.no_grad()
def test_the_oracle_in_padded_and_packed_rows() -> None:
    mixer, x = make("oracle"), tokens(20)
    keep = torch.rand(2, 20) < 0.2
    mask = torch.arange(20) >= torch.tensor([[0], [7]])
    packed, borders = x[mask][None], torch.tensor([0, 20, 33])
    with needed(mixer, keep[mask][None]):
        y, _, _ = mixer(x, mask_BL=mask)
        torch.testing.assert_close(mixer(packed, cu_seqlens=borders)[0], y[mask][None])
    with needed(mixer, keep[1:, 7:]):
        torch.testing.assert_close(mixer(x[1:, 7:])[0], y[1:, 7:])


def test_what_the_oracle_refuses() -> None:
    mixer, x = make("oracle"), tokens(6)
    with pytest.raises(TypeError, match=r"keep: found torch\.int64; allowed: torch\.bool"):
        needed(mixer, torch.ones(2, 6, dtype=torch.int64)).__enter__()
    with (
        needed(mixer, torch.ones(2, 5, dtype=torch.bool)),
        pytest.raises(ValueError, match=r"keep: found shape \(2, 5\); allowed: \(2, 6\)"),
    ):
        mixer(x)
    assert mixer.oracle.keep_BL is None


def test_what_recall_asks_for_later() -> None:
    #                    key 1   noise   key 2   key 1 again, other value   asked: 1, 2
    ids = torch.tensor([[1, 11, 90, 91, 2, 12, 1, 13, 1, 11, 2, 12], [2, 12, *[90] * 10]])
    labels = torch.full_like(ids, -100)
    labels[0, 8], labels[0, 10] = 11, 12
    assert asked_later(ids, labels).nonzero().tolist() == [[0, 0], [0, 1], [0, 4], [0, 5]]


def test_recall_is_evaluated_with_the_oracle_told() -> None:
    vocabulary = mqar.Vocabulary(8, 8, 8)
    shape = mqar.layout(vocabulary, 3, 24, 2)
    arrays = mqar.sequences(np.random.default_rng(0), 5, shape, vocabulary)
    ids, labels = (torch.from_numpy(array) for array in arrays)
    marked = asked_later(ids, labels)
    assert torch.equal(marked.sum(1), torch.full((5,), 4))
    assert not marked[:, 24:].any()

    def build(policy: str, window: int) -> models.LanguageModel:
        options = {**BLOCK, "policy": policy, "sink": 0, "budget": 4, "window": window}
        spec = {"hidden": HIDDEN, "vocab": vocabulary.size, "layers": [["eviction", options]] * 2}
        rest = {"init_std": None, "norm_eps": 1e-6, "tie_embeddings": False}
        torch.manual_seed(0)
        return models.LanguageModel({**spec, **rest}).eval()

    model = build("oracle", 6)
    found = sequence_accuracies(model, ids, labels, 2)
    kept = []
    hook = model.layers[1].register_forward_hook(
        lambda mixer, inputs, outputs: kept.append(outputs[2]["visible_until_BTH"])
    )
    assert sequence_accuracies(model, ids, labels, 2) == found
    hook.remove()
    # what has left the window by the end
    far = torch.cat(kept)[:, : shape.tokens - 6] > 0
    assert torch.equal(far, marked[:, : shape.tokens - 6, None].expand_as(far))
    with pytest.raises(ValueError, match="oracle: found no word"):
        model(ids)
    # models without an oracle are left alone
    assert len(sequence_accuracies(build("h2o", 6), ids, labels, 2)) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "kv_heads: found 3; allowed: divisors of 4"),
        ({"window": 0}, "window: found 0; allowed: at least 1"),
        ({"sink": -1}, "sink: found -1; allowed: 0 or more"),
        ({"sink": 6}, "budget: found 5; allowed: at least sink 6"),
    ],
)
def test_unfit_options_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("random", **change)
