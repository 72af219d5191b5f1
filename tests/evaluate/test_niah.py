import json
import math

import pytest

from forgetmenot import model as models
from forgetmenot.errors import UserError
from forgetmenot.evaluate.niah import Options, by_depth, evaluate, measure

SAMPLES = {
    ("niah_2", 8): [("one", "three"), ("two", "four"), ("one", "four")],
    ("niah_1", 16): [("two", "one two")],
    ("niah_1", 8): [("one", "Two Three"), ("one", "six")],
}


@pytest.fixture
def needles(words):
    """A built folder; each sample is (prompt, answer)."""
    (words / "test").mkdir()
    for (task, length), samples in SAMPLES.items():
        lines = [
            {
                "id": f"{task}-{length}-{index}",
                "task": task,
                "length": length,
                "index": index,
                "depth": 10 * index,
                "input": prompt,
                "outputs": [answer],
                "tokens": 2,
            }
            for index, (prompt, answer) in enumerate(samples)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (words / "test" / f"{task}-{length}.jsonl").write_text(text)
    return words


@pytest.fixture
def counts(chain):
    """Continues "one" with "two three four", and "two" with "three four"."""
    return chain({"one": "two", "two": "three", "three": "four"})


def test_accuracy_by_task_and_length(needles, counts, no_network):
    metrics, samples = measure(counts, needles, Options(max_new_tokens=8), "cpu")
    assert [tuple(entry.values()) for entry in metrics] == [
        ("accuracy", {"task": "niah_1", "length": 8}, 0.5, pytest.approx(0.5), 2),
        ("accuracy", {"task": "niah_1", "length": 16}, 0.0, None, 1),
        ("accuracy", {"task": "niah_2", "length": 8}, 1.0, pytest.approx(0.0), 3),
    ]
    assert samples[1] == {
        "id": "niah_1-8-1",
        "at": {"task": "niah_1", "length": 8, "depth": 10},
        "accuracy": 0.0,
        "tokens": 2,
        "answers": ["six"],
        "output": "two three four",
    }
    assert len(samples) == 6


def test_the_answer_must_come_within_the_new_tokens(needles, counts):
    metrics, samples = measure(counts, needles, Options(tasks=["niah_2"], max_new_tokens=2), "cpu")
    assert [sample["output"] for sample in samples] == ["two three", "three four", "two three"]
    assert metrics[0]["value"] == pytest.approx(2 / 3)
    assert metrics[0]["stderr"] == pytest.approx(math.sqrt(2 / 9 / 2))


def test_chooses_tasks_lengths_and_samples(needles, counts):
    options = Options(tasks=["niah_1"], lengths=[8], samples=1, max_new_tokens=4)
    metrics, samples = measure(counts, needles, options, "cpu")
    assert [entry["at"] for entry in metrics] == [{"task": "niah_1", "length": 8}]
    assert [sample["id"] for sample in samples] == ["niah_1-8-0"]


def test_refuses_options_below_one():
    with pytest.raises(ValueError, match="samples: found 0, allowed: 1 or more"):
        Options(samples=0)


def test_refuses_unbuilt_lengths(needles, counts):
    with pytest.raises(UserError, match=r"length: found \[8, 32\], allowed: \[8, 16\]"):
        measure(counts, needles, Options(lengths=[8, 32]), "cpu")


def test_refuses_to_generate_less_than_an_answer(needles, counts):
    with pytest.raises(UserError, match="found 1, but the answer of niah_1-8-0 takes 2 tokens"):
        measure(counts, needles, Options(max_new_tokens=1), "cpu")


def test_refuses_a_sample_that_does_not_fit(needles, counts):
    with pytest.raises(UserError, match=r"takes 10 tokens .* max_length allows 9"):
        measure(counts, needles, Options(max_new_tokens=8, max_length=9), "cpu")


def test_depths_are_binned_by_ten():
    depths = {0: 1.0, 9: 0.0, 10: 1.0, 97: 0.5, 100: 0.0}
    at = {"task": "niah_2", "length": 8}
    samples = [{"at": at | {"depth": depth}, "accuracy": a} for depth, a in depths.items()]
    found = {entry["at"]["depth"]: entry for entry in by_depth(samples)}
    assert {depth: (entry["value"], entry["n"]) for depth, entry in found.items()} == {
        0: (0.5, 2),
        10: (1.0, 1),
        90: (0.25, 2),
    }
    assert found[90]["stderr"] == pytest.approx(0.25)
    assert found[10]["metric"] == "accuracy_at_depth"


def test_results_say_what_the_haystack_is(needles, gdn, tmp_path):
    meta = json.loads((needles / "meta.json").read_text())
    made = meta | {"haystack": "essays", "fill": "nominal", "samples": 3}
    (needles / "meta.json").write_text(json.dumps(made))
    models.save(gdn, tmp_path / "model")
    options = Options(tasks=["niah_1"], max_new_tokens=2)
    evaluate(tmp_path / "model", needles, options, tmp_path / "out", "cpu")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["about"] == {"haystack": "essays", "fill": "nominal"}
    depths = [e["at"] for e in results["metrics"] if e["metric"] == "accuracy_at_depth"]
    assert {"task": "niah_1", "length": 8, "depth": 10} in depths
