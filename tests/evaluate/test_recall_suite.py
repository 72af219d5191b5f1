import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from forgetmenot.errors import UserError
from forgetmenot.evaluate import recall_prompts
from forgetmenot.evaluate.recall_suite import Options, measure

CONTEXT = " ".join(["one two three four five"] * 30)


def row(name, **values):
    made = {"id": name, "text": None, "context": "one two.", "question": "three", "intro": "four"}
    return made | {"answers": ["six"]} | values


@pytest.fixture
def suite(words):
    """A built folder: two sets, one that lm-eval has no task for, one of a fixed context."""
    sets = {
        "fda": [
            row("fda/0", text=" one two\n three "),
            row("fda/1", text="two", answers=[" Four"]),
        ],
        "drop": [row("drop/0"), row("drop/1", context=CONTEXT + " six " + CONTEXT)],
        # The second one's answer has one character, which jrt leaves out.
        "nq_128": [row("nq_128/0"), row("nq_128/1", answers=["6"])],
    }
    for name, rows in sets.items():
        (words / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    meta = json.loads((words / "meta.json").read_text())
    about = {name: {"context": 128 if name == "nq_128" else None} for name in sets}
    meta |= {"sets": about, "skipped": {"nq_512": "no commit", "swde": "no commit"}}
    (words / "meta.json").write_text(json.dumps(meta))
    return words


@pytest.fixture
def counts(chain):
    return chain({"one": "two", "two": "three", "three": "four", "four": "five"})


def test_every_number_names_set_protocol_context_and_passes(suite, counts, no_network):
    options = Options(["jrt", "lm-eval-v1"], contexts=[128], max_new_tokens=4)
    metrics, samples, skips = measure(counts, suite, options, "cpu")
    found = {
        (at["set"], at["protocol"], at["context"], at["passes"]): entry["value"]
        for entry in metrics
        if entry["metric"] == "contains"
        for at in [entry["at"]]
    }
    # Every prompt ends in "three" but fda/1 of lm-eval; the model goes on with "four five".
    assert found == {
        ("fda", "jrt", 128, 1): 0.0,  # " Four" has a space in front, the output has none
        ("fda", "jrt", 128, 2): 0.0,
        ("fda", "lm-eval-v1", "full", 1): 0.5,
        ("drop", "jrt", 128, 1): 0.0,
        ("drop", "jrt", 128, 2): 0.0,
        ("nq", "jrt", 128, 1): 0.0,
        ("nq", "jrt", 128, 2): 0.0,
    }
    assert samples[0]["output"] == "four five"
    assert skips == [
        {"at": {"set": "nq", "context": 512}, "reason": "no commit"},
        {"at": {"set": "swde"}, "reason": "no commit"},
        *(
            {
                "at": {"set": name, "protocol": "lm-eval-v1", "context": context, "passes": 1},
                "reason": "no question of this set has a prompt in lm-eval-v1",
            }
            for name, context in (("drop", "full"), ("nq", 128))
        ),
    ]
    means = {
        entry["at"]["passes"]: (entry["value"], entry["n"])
        for entry in metrics
        if entry["metric"] == "contains_mean" and entry["at"]["protocol"] == "jrt"
    }
    assert means == {1: (0.0, 5), 2: (0.0, 5)}


def test_chooses_sets_samples_and_passes(suite, counts):
    options = Options(sets=["fda"], samples=1, contexts=[64], passes=[2], max_new_tokens=2)
    _, samples, skips = measure(counts, suite, options, "cpu")
    assert [sample["id"] for sample in samples] == ["fda/0"]
    assert skips == []
    with pytest.raises(UserError, match=r"sets: found \['x'\], allowed: \['drop', 'fda', 'nq_128'"):
        measure(counts, suite, Options(sets=["x"]), "cpu")


def test_refuses_a_prompt_that_does_not_fit(suite, counts):
    options = Options(sets=["drop"], contexts=[128], passes=[1], max_length=60, max_new_tokens=2)
    with pytest.raises(UserError, match="max_length allows 60"):
        measure(counts, suite, options, "cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"contexts": [32]}, "contexts: found 32, allowed: 64 or more"),
        ({"passes": []}, r"passes: found \[\]"),
        ({"protocols": ["jrt", "jrt"]}, "protocols: found"),
        ({"samples": 0}, "samples: found 0"),
    ],
)
def test_options_name_the_key(values, message):
    with pytest.raises(ValueError, match=message):
        Options(**values)


@pytest.fixture
def characters():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return tokenizer


def test_a_cut_context_holds_the_answer_with_as_much_before_as_behind(characters):
    text = "".join(chr(97 + n % 7) for n in range(300)) + "ANSWER" + "xyz" * 100
    part = recall_prompts.cut(text, ["answer"], 100, characters)
    assert len(part) == 100
    assert part.index("ANSWER") == 50
    assert part in text
    early = recall_prompts.cut("..ANSWER" + text[:300], ["ANSWER"], 100, characters)
    assert early == ("..ANSWER" + text)[:100]
    assert recall_prompts.cut(text, ["absent"], 100, characters) == text[:100]
    assert recall_prompts.cut(text[:100], ["absent"], 100, characters) == text[:100]
    assert recall_prompts.last_tokens(text, 3, characters) == "xyz"


def test_jrt_gives_the_context_once_or_twice(characters):
    asked = row("a", context="One. Two.. \n", question="Three?", intro="Four:")
    once, twice = (recall_prompts.jrt_prompt(asked, 200, n, characters) for n in (1, 2))
    assert once == "One. Two. Three?"
    assert twice == "Four: One. Two.\nOne. Two. Three?"
    inside = row("a", text=" One two. Three is ", context="One two.", question="", intro="What?")
    once, twice = (recall_prompts.jrt_prompt(inside, 200, n, characters) for n in (1, 2))
    assert once == "One two. Three is"
    assert twice == "What? One two.\nOne two. Three is"


DOC = {"text": "\n Sponsor: Acme\n key: ", "key": "key", "value": " Acme (Inc.) "}
OUTPUTS = [" acme (inc.) it is", "Acme (Inc.)", "acme inc", "", "the ACME (INC.) ", " Acme (Inc.) "]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("task", ["fda", "swde", "squad_completion"])
def test_prompt_and_score_are_those_of_lm_evals_tasks(output, task):
    import importlib

    module = importlib.import_module(f"lm_eval.tasks.{task}.task")
    kind = {"fda": "FDA", "swde": "SWDE", "squad_completion": "SQUADCompletion"}[task]
    theirs = object.__new__(getattr(module, kind))
    doc = {**DOC, "answers": [DOC["value"]]}
    prompt, answers = recall_prompts.lm_eval_prompt(doc, "lm-eval-v1")
    assert prompt == theirs.doc_to_text(doc)
    assert answers == [theirs.doc_to_target(doc)]
    score = recall_prompts.process_results({"answers": answers}, [output])
    assert score["contains"] == theirs.process_results(doc, [output])["contains"]
    assert theirs.VERSION == 1


def test_version_0_keeps_white_space():
    doc = {**DOC, "answers": [DOC["value"]]}
    assert recall_prompts.lm_eval_prompt(doc, "lm-eval-v0") == (DOC["text"], [DOC["value"]])


@pytest.mark.parametrize(
    ("output", "answers", "score"),
    [
        ("The Romans!", ["romans"], 1.0),
        ("old Romans", ["the Romans", "Gauls"], 2 / 3),
        ("a b b c", ["b b d"], 2 / 3),
        ("nobody", ["Romans"], 0.0),
        ("", ["The"], 1.0),
        ("the", ["Romans"], 0.0),
    ],
)
def test_f1_is_squads(output, answers, score):
    assert recall_prompts.f1(output, answers) == pytest.approx(score)
