import pytest
import torch

from forgetmenot.errors import UserError
from forgetmenot.evaluate.harness import HarnessModel


class Request:
    def __init__(self, *args):
        self.args = args


@pytest.fixture
def harness(words):
    def make(model, max_length=16, batch_size=3):
        return HarnessModel(
            model,
            words,
            max_length=max_length,
            batch_size=batch_size,
            device="cpu",
        )

    return make


TEXT = "one two three four five six one one two"
IDS = [0, 2, 3, 4, 5, 6, 7, 2, 2, 3]


def test_loglikelihood_is_that_of_the_continuation_alone(harness, trigram):
    requests = [Request("one two", " three four"), Request("", "one"), Request(TEXT, " six")]
    found = [value for value, _ in harness(trigram).loglikelihood(requests)]
    assert found == pytest.approx(
        [
            sum(trigram.log_probabilities(IDS[:5])[2:]),
            trigram.log_probabilities([0, 2])[0],
            trigram.log_probabilities([*IDS, 7])[-1],
        ],
        rel=1e-5,
    )


def test_loglikelihood_tells_whether_the_continuation_is_greedy(harness, chain):
    model = chain({"one": "two", "two": "three"})
    requests = [Request("one", " two three"), Request("one", " two four")]
    assert [greedy for _, greedy in harness(model).loglikelihood(requests)] == [True, False]


def test_rolling_predicts_every_token_once_in_disjoint_windows(harness, trigram):
    # Windows of 4: BOS and 3 tokens predict 4, 4 tokens predict 4, and the rest is predicted from
    # a whole window again.
    expected = sum(trigram.log_probabilities(IDS[:5])) + sum(trigram.log_probabilities(IDS[4:9]))
    expected += trigram.log_probabilities(IDS[5:])[-1]
    requests = [Request(TEXT), Request("one")]
    found = harness(trigram, max_length=4).loglikelihood_rolling(requests)
    assert found == pytest.approx([expected, trigram.log_probabilities([0, 2])[0]], rel=1e-5)


def test_scores_do_not_depend_on_batch_or_order(harness, hybrid):
    texts = [TEXT, "one", "two six", TEXT + " " + TEXT, "five five five"]
    alone = harness(hybrid, batch_size=1).loglikelihood_rolling([Request(t) for t in texts])
    together = harness(hybrid, batch_size=4).loglikelihood_rolling(
        [Request(t) for t in reversed(texts)]
    )
    assert together[::-1] == pytest.approx(alone, rel=1e-5)


def test_rolling_agrees_with_one_forward_pass(harness, hybrid):
    (found,) = harness(hybrid).loglikelihood_rolling([Request(TEXT)])
    with torch.no_grad():
        logs_LV = hybrid(torch.tensor([IDS[:-1]])).logits_BLV[0].log_softmax(-1)
    expected = logs_LV.gather(1, torch.tensor(IDS[1:])[:, None]).sum()
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_generation_ends_before_a_stop_string_eos_or_bos(harness, chain):
    model = chain({"one": "two", "two": "three", "three": "four", "six": "</s>"})
    kinds = {"max_gen_toks": 8, "until": ["four"]}, {"max_gen_toks": 8}, {"max_gen_toks": 2}
    requests = [Request("six", {"max_gen_toks": 8}), *(Request("one", kind) for kind in kinds)]
    assert harness(model).generate_until(requests) == [
        "",
        "two three ",
        "two three four",
        "two three",
    ]


def test_refuses_what_does_not_fit(harness, trigram):
    with pytest.raises(UserError, match=r"'one two three' takes 12 tokens .* max_length allows 11"):
        harness(trigram, max_length=11).generate_until(
            [Request("one two three", {"max_gen_toks": 8})]
        )
    with pytest.raises(UserError, match=r"takes 4 tokens .* max_length allows 3"):
        harness(trigram, max_length=3).loglikelihood([Request("one two", " three")])


def test_refuses_sampling(harness, trigram):
    with pytest.raises(UserError, match="do_sample: found true, allowed: false"):
        harness(trigram).generate_until([Request("one", {"do_sample": True, "max_gen_toks": 1})])
