import json

import numpy as np
import pytest
import torch

from forgetmenot import model as models
from forgetmenot.errors import UserError
from forgetmenot.evaluate.harness import HarnessModel
from forgetmenot.evaluate.lm_eval_tasks import LocalTask, run_tasks


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


def approx(values):
    return pytest.approx(values, rel=1e-5)


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


@pytest.mark.parametrize("name", ["hybrid", "lalte", "gdn"])
def test_scores_do_not_depend_on_batch_or_order(harness, name, request):
    model = request.getfixturevalue(name)
    texts = [TEXT, "one", "two six", TEXT + " " + TEXT, "five five five", TEXT + " four"]
    kinds = {
        "loglikelihood_rolling": [Request(text) for text in texts],
        "loglikelihood": [Request(text, " six two") for text in texts],
        "generate_until": [Request(text, {"max_gen_toks": 9, "until": ["four"]}) for text in texts],
    }
    for kind, requests in kinds.items():
        alone = getattr(harness(model, 40, batch_size=1), kind)(requests)
        for batch_size in (2, 4, 64):
            together = getattr(harness(model, 40, batch_size), kind)(requests[::-1])[::-1]
            if kind == "generate_until":
                assert together == alone
            else:
                assert np.array(together) == approx(np.array(alone))


def test_contexts_of_a_prosg_model_are_prompts(harness, gdn_prosg):
    texts = [("one two three four five six", " six two one"), ("two", " one"), (TEXT, " four one")]
    requests = [Request(*text) for text in texts]
    found = harness(gdn_prosg, 40).loglikelihood(requests)
    expected = []
    with torch.no_grad():
        for context, target in texts:
            encode = harness(gdn_prosg).tok_encode
            ids = torch.tensor([encode(context)])
            target_L = torch.tensor(encode(target, add_special_tokens=False))
            read = gdn_prosg(ids)
            logits_LV = read.logits_BLV[0, -1:]
            if len(target_L) > 1:
                state = gdn_prosg.commit_prompt(read.state)
                body = gdn_prosg(target_L[None, :-1], state).logits_BLV[0]
                logits_LV = torch.cat((logits_LV, body))
            logs_L = logits_LV.log_softmax(-1).gather(1, target_L[:, None])
            greedy = torch.equal(logits_LV.argmax(-1), target_L)
            expected.append((float(logs_L.sum()), greedy))
    assert [value for value, _ in found] == approx([value for value, _ in expected])
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert harness(gdn_prosg, 40, batch_size=1).loglikelihood(requests) == [
        (approx(value), greedy) for value, greedy in found
    ]
    base = harness(gdn_prosg.base, 40).loglikelihood(requests)
    differ = [abs(a - b) > 1e-3 for (a, _), (b, _) in zip(found, base, strict=True)]
    assert differ == [True, False, True]  # a single token is predicted by reading the prompt


def test_what_is_generated_by_a_prosg_model_is_its_greedy_choice(harness, gdn_prosg):
    (text,) = harness(gdn_prosg).generate_until([Request(TEXT, {"max_gen_toks": 5})])
    ((_, greedy),) = harness(gdn_prosg).loglikelihood([Request(TEXT, f" {text}")])
    assert greedy


def test_a_text_without_prompt_is_scored_by_the_base(harness, gdn_prosg):
    of_both = [
        harness(m).loglikelihood_rolling([Request(TEXT)]) for m in (gdn_prosg, gdn_prosg.base)
    ]
    assert of_both[0] == of_both[1]


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


@pytest.fixture
def local_tasks(words):
    """A task of each kind that we use, over two files."""
    texts = [TEXT, "one two", "six five four", TEXT + " six"]
    lines = [
        {"id": str(n), "text": text, "input": text, "outputs": ["one"]}
        for n, text in enumerate(texts)
    ]
    tasks = []
    for template in ("needle", "heldout"):
        file = words / f"{template}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        changes = {"generation_kwargs": {"do_sample": False, "max_gen_toks": 6, "until": []}}
        tasks.append(LocalTask(template, template, file, changes if template == "needle" else {}))
    return tasks


@pytest.mark.parametrize("name", ["lalte", "gdn"])
def test_scores_do_not_depend_on_the_order_of_tasks(name, local_tasks, words, request):
    model = request.getfixturevalue(name)

    def run(tasks, batch_size):
        found = run_tasks(
            model,
            words,
            tasks,
            limit=None,
            max_length=32,
            batch_size=batch_size,
            device="cpu",
        )
        needle = [(sample["resps"], sample["contains"]) for sample in found["needle"].samples]
        heldout = [sample["word_perplexity"][0] for sample in found["heldout"].samples]
        return needle, heldout, found["heldout"].metrics["bits_per_byte"]

    first, second = run(local_tasks, 4), run(local_tasks[::-1], 1)
    assert first[0] == second[0]
    assert first[1] == approx(second[1])
    assert first[2] == approx(second[2])


def test_lm_eval_makes_one_by_name(lalte, words, tmp_path, local_tasks):
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    models.save(lalte, tmp_path / "model")
    task = {
        "task": "choose",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(local_tasks[0].file)},
            "cache_dir": str(tmp_path / "cache"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "input",
        "doc_to_choice": ["one", "two"],
        "doc_to_target": 0,
    }
    found = simple_evaluate(
        model="forgetmenot",
        model_args=f"model={tmp_path / 'model'},tokenizer={words},max_length=32",
        batch_size=2,
        device="cuda:0" if not torch.cuda.is_available() else "cpu",  # what its command asks for
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
    )
    direct = HarnessModel(lalte, words, max_length=32, batch_size=4, device="cpu")
    for sample in found["samples"]["choose"]:
        requests = [Request(sample["doc"]["input"], word) for word in (" one", " two")]
        values = [value for value, _ in direct.loglikelihood(requests)]
        assert [value for value, _ in sample["filtered_resps"]] == approx(values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("model=a", r"model_args: found \['model'\]; allowed: model and tokenizer"),
        ("model=a,tokenizer=b,depth=3", "model_args: found .*'depth'"),
        ("model=a,tokenizer=b,batch_size=auto", "batch_size: found auto"),
    ],
)
def test_refuses_unfit_model_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        HarnessModel.create_from_arg_string(arguments)
