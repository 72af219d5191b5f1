import json
import math

import pytest

from forgetmenot.data.language_sets import COLUMNS
from forgetmenot.errors import UserError
from forgetmenot.evaluate.language import AVERAGED, TASKS, Options, measure
from forgetmenot.evaluate.score import ratio_stderr

CHOICES = {"text": ["two", "six"], "label": ["A", "B"]}
ROWS = {
    "lambada_openai": [{"text": "one two three"}, {"text": "one two six"}],
    "piqa": [{"goal": "one", "sol1": "six", "sol2": "two", "label": 1}],
    "hellaswag": [
        {"ctx_a": "one", "ctx_b": "two", "activity_label": "five", "label": "0"}
        | {"endings": ["three", "six"]}
    ],
    "winogrande": [{"sentence": "one _ three", "option1": "two", "option2": "six", "answer": "1"}],
    "arc_easy": [{"question": "one", "choices": CHOICES, "answerKey": "A"}],
    "arc_challenge": [{"question": "one", "choices": CHOICES, "answerKey": "B"}],
    "social_iqa": [
        {"context": "one", "question": "two", "label": "1"}
        | {"answerA": "six", "answerB": "two", "answerC": "one"}
    ],
    "boolq": [{"passage": "one", "question": "two", "label": 1}],
    "wikitext2_unk": [{"page": " = one = \n two @-@ three"}, {"page": " = six = \n one"}],
}


@pytest.fixture
def folder(words):
    def make(names):
        for name in names:
            lines = [json.dumps({**row, "id": f"{name}/0"}) + "\n" for row in ROWS[name]]
            (words / f"{name}.jsonl").write_text("".join(lines))
        meta = json.loads((words / "meta.json").read_text())
        meta |= {"sets": {name: {} for name in names}, "skipped": {"wikitext": "no commit"}}
        (words / "meta.json").write_text(json.dumps(meta))
        return words

    return make


@pytest.fixture
def counts(chain):
    return chain({"one": "two", "two": "three", "three": "four"})


def test_every_set_runs_through_lm_evals_own_task(folder, counts, no_network):
    data = folder(ROWS)
    metrics, samples, skips = measure(counts, data, Options(max_length=32, batch_size=3), "cpu")
    accuracy = {
        entry["at"]["set"]: entry["value"] for entry in metrics if entry["metric"] == "accuracy"
    }
    assert set(accuracy) == set(AVERAGED)
    assert accuracy["lambada_openai"] == 0.5
    assert accuracy["winogrande"] == 1.0
    normalised = {e["at"]["set"] for e in metrics if e["metric"] == "accuracy_norm"}
    assert normalised == {"piqa", "hellaswag", "arc_easy", "arc_challenge"}
    assert skips == [{"at": {"set": "wikitext"}, "reason": "no commit"}]
    by_name = {entry["metric"]: entry for entry in metrics}
    usual = [
        entry["value"]
        for entry in metrics
        for name in [entry["at"].get("set")]
        if name in AVERAGED
        and entry["metric"]
        == ("accuracy_norm" if name in ("hellaswag", "arc_challenge") else "accuracy")
    ]
    assert by_name["accuracy_mean"]["value"] == pytest.approx(sum(usual) / 8)
    assert by_name["accuracy_mean"]["at"] == {}
    ids = [sample["id"] for sample in samples]
    assert len(set(ids)) == len(ids) == sum(map(len, ROWS.values()))


def test_lambada_scores_the_last_word(folder, trigram):
    metrics, samples, _ = measure(trigram, folder(["lambada_openai"]), Options(), "cpu")
    losses = [-trigram.log_probabilities(ids)[-1] for ids in ([0, 2, 3, 4], [0, 2, 3, 7])]
    assert [sample["loss"] for sample in samples] == pytest.approx(losses, rel=1e-5)
    by_name = {entry["metric"]: entry for entry in metrics}
    assert by_name["perplexity"]["value"] == pytest.approx(math.exp(sum(losses) / 2), rel=1e-5)
    assert by_name["perplexity"]["at"] == {"set": "lambada_openai"}
    assert "accuracy_mean" not in by_name


def test_wikitext_counts_words_of_the_page_as_it_stands(folder, uniform):
    metrics, samples, _ = measure(uniform, folder(["wikitext2_unk"]), Options(), "cpu")
    assert [sample["words"] for sample in samples] == [7, 5]
    by_name = {entry["metric"]: entry for entry in metrics}
    # Detokenised: "= one =", "two-three" and so on, a token of the vocabulary of 11 a word.
    total = sum(sample["log_likelihood"] for sample in samples)
    assert by_name["word_perplexity"]["value"] == pytest.approx(math.exp(-total / 12))
    sizes = sum(sample["bytes"] for sample in samples)
    bits = -total / math.log(2) / sizes
    assert by_name["bits_per_byte"]["value"] == pytest.approx(bits)
    losses = [-sample["log_likelihood"] / math.log(2) for sample in samples]
    _, stderr = ratio_stderr(losses, [sample["bytes"] for sample in samples])
    assert by_name["bits_per_byte"]["stderr"] == pytest.approx(stderr)


def test_chooses_sets_and_samples(folder, counts):
    data = folder(["lambada_openai", "boolq"])
    _, samples, skips = measure(counts, data, Options(["lambada_openai"], samples=1), "cpu")
    assert [sample["id"] for sample in samples] == ["lambada_openai/0"]
    assert skips == []
    with pytest.raises(UserError, match=r"sets: found \['piqa'\], allowed"):
        measure(counts, data, Options(["piqa"]), "cpu")


def test_every_set_has_a_task_and_columns():
    assert set(TASKS) == set(COLUMNS)


def test_options_name_the_key():
    with pytest.raises(ValueError, match="max_length: found 0"):
        Options(max_length=0)
