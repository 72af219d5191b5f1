import math

import pytest
import torch

from forgetmenot.evaluate.score import contains_share, mean_stderr, ratio_stderr, token_losses


def test_token_losses_are_exact_and_skip_unscored_labels(trigram):
    ids = [0, 3, 2, 5, 7]
    labels_BL = torch.tensor([[3, -100, 5, 7]])
    loss_BL, hit_BL = token_losses(trigram, torch.tensor([ids[:-1]]), labels_BL)
    expected = [-value for value in trigram.log_probabilities(ids)]
    expected[1] = 0.0
    assert loss_BL[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert not hit_BL[0, 1]


def test_mean_stderr():
    assert mean_stderr([1.0, 0.0, 0.0, 1.0]) == (0.5, pytest.approx(math.sqrt(1 / 3) / 2))
    assert mean_stderr([0.25]) == (0.25, None)


def test_ratio_stderr_is_the_mean_stderr_for_equal_sizes():
    values = [1.0, 4.0, 2.0, 3.0]
    ratio, stderr = ratio_stderr(values, [2.0] * 4)
    mean, mean_error = mean_stderr(values)
    assert (ratio, stderr) == (mean / 2, pytest.approx(mean_error / 2))


def test_ratio_stderr_vanishes_when_every_document_has_the_same_ratio():
    assert ratio_stderr([1.0, 2.0, 4.0], [10, 20, 40]) == (0.1, pytest.approx(0, abs=1e-12))
    assert ratio_stderr([3.0], [4]) == (0.75, None)


@pytest.mark.parametrize(
    ("output", "answers", "share"),
    [
        ("It is 1234567.", ["1234567"], 1.0),
        ("A1B2-C3", ["a1b2-c3"], 1.0),
        ("123 4567", ["1234567"], 0.0),
        ("12\x003", ["123"], 0.0),
        ("one and two", ["one", "three"], 0.5),
        ("", ["one"], 0.0),
    ],
)
def test_contains_share(output, answers, share):
    assert contains_share(output, answers) == share
