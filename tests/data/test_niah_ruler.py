"""Our needle samples and score against lm-eval's own copy of RULER: same text, same numbers.

lm-eval's generator runs here with three stand-ins: its word list, its sentence splitter (which
would be downloaded) and, where texts are compared, its dice.
"""

import importlib
import math
import random
import re
import sys
from itertools import cycle
from types import ModuleType, SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from forgetmenot.data import niah, niah_haystack, niah_needle, niah_nominal, niah_text
from forgetmenot.data.niah_sample import Writer
from forgetmenot.data.sampling import sample_rng
from forgetmenot.errors import UserError
from forgetmenot.evaluate.score import contains_share

SENTENCE = "The river {} behind the old house and nobody asked why."
TEXT = " ".join(SENTENCE.format(word) for word in ["ran", "slept", "rose", "froze"] * 80)
RULER = {
    "niah_1": {"type_haystack": "repeat"},
    "niah_2": {},
    "niah_3": {"type_needle_v": "uuids"},
    "niah_multikey": {"num_needle_k": 4},
    "niah_multivalue": {"num_needle_v": 4},
    "niah_multiquery": {"num_needle_q": 4},
}


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes as tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture
def ruler(monkeypatch, tokenizer):
    """lm-eval's generator, and a function that makes samples of one of our tasks with it."""
    nltk, wonderwords = ModuleType("nltk"), ModuleType("wonderwords")
    nltk.data = SimpleNamespace(find=lambda name: name)
    nltk.sent_tokenize = lambda text: re.findall(r"\S.*?[.](?= |$)|\S.*$", text)
    words = SimpleNamespace(_categories={"nouns": ["tree"], "adjectives": ["odd"], "verbs": []})
    wonderwords.RandomWord = lambda: words
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    monkeypatch.setitem(sys.modules, "wonderwords", wonderwords)
    monkeypatch.delitem(sys.modules, "lm_eval.tasks.ruler.prepare_niah", raising=False)
    module = importlib.import_module("lm_eval.tasks.ruler.prepare_niah")
    from lm_eval.tasks.ruler.niah_utils import TEMPLATE

    def encode(text):
        return SimpleNamespace(input_ids=[0, *niah_haystack.encode(tokenizer, text)])

    def make(task, length, samples):
        options = {"type_haystack": "essay", "type_needle_k": "words", "type_needle_v": "numbers"}
        options |= RULER[task]
        haystack = niah_text.NOISE if task == "niah_1" else TEXT.split(" ")
        lines = module.generate_samples(
            haystack,
            TOKENIZER=encode,
            max_seq_length=length,
            template=TEMPLATE,
            num_samples=samples,
            **options,
        )
        for line in lines:
            line["prompt"] = f"{line['input']} {line['gen_prefix']}"
        return lines

    yield SimpleNamespace(module=module, make=make)
    sys.modules.pop("lm_eval.tasks.ruler.prepare_niah", None)
    sys.modules.pop("lm_eval.tasks.ruler.niah_utils", None)


@pytest.fixture(scope="module")
def writers(tokenizer):
    prose = niah_haystack.prose(TEXT, tokenizer)
    lines = niah_haystack.repeated(20_000, tokenizer)
    return {task: Writer(tokenizer, lines if task == "niah_1" else prose) for task in RULER}


def load_dice(monkeypatch, module, needle, place):
    """Make lm-eval's generator draw what we drew; it shuffles what stands in order here."""
    keys = list(dict.fromkeys(key for key, _ in needle.pairs))
    drawn_keys, values = cycle(keys), cycle(value for _, value in needle.pairs)
    monkeypatch.setattr(module, "generate_random_word", lambda: next(drawn_keys))
    for name in ("generate_random_number", "generate_random_uuid"):
        monkeypatch.setattr(module, name, lambda: next(values))

    def sample(population, count):
        if population is module.DEPTHS:
            return list(place.depths)
        if len(population) == len(keys):
            return [keys.index(key) for key in needle.asked]
        return list(place.inserts)

    unshuffled = SimpleNamespace(shuffle=lambda items: None)
    monkeypatch.setattr(
        module, "random", SimpleNamespace(sample=sample, Random=lambda s: unshuffled)
    )


def both(task, length, index, writer, ruler, monkeypatch):
    """One nominal sample of ours and where its needles stand, then lm-eval's with our draws."""
    rng = sample_rng(0, task, length, index)
    needle = writer.draw(rng, task, "test", length)
    place = niah_nominal.place(writer, rng, needle, length)
    load_dice(monkeypatch, ruler.module, needle, place)
    (theirs,) = ruler.make(task, length, 1)
    assert place.end % niah_nominal._step(needle, length) == 0
    return niah.sample(writer, task, length, index, 0, "nominal"), place, theirs


@pytest.mark.parametrize("task", RULER)
@pytest.mark.parametrize("length", [4090, 8100])
def test_nominal_prompts_are_those_of_lm_eval(task, length, writers, ruler, monkeypatch):
    ours, _, theirs = both(task, length, 3, writers[task], ruler, monkeypatch)
    assert ours["input"] == theirs["prompt"]
    assert sorted(ours["outputs"]) == sorted(theirs["outputs"])
    assert ours["tokens"] <= length - 60


@pytest.mark.parametrize("task", ["niah_2", "niah_multivalue"])
def test_nominal_prompts_are_those_of_lm_eval_at_every_depth(task, writers, ruler, monkeypatch):
    depths = set()
    for index in range(250):
        ours, place, theirs = both(task, 4090, index, writers[task], ruler, monkeypatch)
        assert ours["input"] == theirs["prompt"], place.depths
        depths |= set(place.depths)
    assert depths == set(niah_text.DEPTHS)


def test_a_nominal_length_without_room_is_refused(writers):
    with pytest.raises(UserError, match="niah_2 at nominal length 2000: found no room for 500"):
        niah.sample(writers["niah_2"], "niah_2", 2000, 0, 0, "nominal")


@pytest.mark.parametrize("task", ["niah_multikey", "niah_multivalue", "niah_multiquery"])
def test_several_needles_fill_their_length(task, writers):
    form = niah_text.FORMS[task]
    seen = set()
    for index in range(6):
        line = niah.sample(writers[task], task, 5000, index, 0)
        needles = re.findall(
            r"One of the special magic numbers for (\S+) is: (\d+)\.", line["input"]
        )
        assert len(set(needles)) == form.keys * form.values
        assert len({key for key, _ in needles}) == form.keys
        question = line["input"].splitlines()[-1]
        asked = [value for key, value in needles if key in question]
        assert sorted(line["outputs"]) == sorted(asked)
        assert len(asked) == form.asked * form.values
        assert 4970 < line["tokens"] + len(" " + ", ".join(line["outputs"])) <= 5000
        seen.add(line["depth"])
    assert len(seen) > 1


def test_keys_of_one_text_differ():
    rng = sample_rng(0, "keys")
    for _ in range(50):
        needle = niah_needle.draw(rng, "niah_multiquery", "test")
        assert len({key for key, _ in needle.pairs}) == len(needle.asked) == 4


OUTPUTS = ["", "It is 12", "1234567\x00and 7654321", "abc-DEF", " ABC-def\t", "7654321 1234567 x"]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("answers", [["1234567"], ["abc-def"], ["1234567", "7654321", "12"]])
def test_the_score_is_that_of_lm_eval(output, answers):
    from lm_eval.tasks.ruler.common_utils import process_results

    doc = {"outputs": answers, "max_length": 512}
    assert contains_share(output, answers) == process_results(doc, [output])["512"]


def forgetful_reader(prompt):
    """Answers from the last 60 % of the prompt alone."""
    kept = prompt[int(0.4 * len(prompt)) :]
    key = re.search(r"What is .* for (\S+) mentioned", prompt)[1]
    found = re.search(rf"for {key} is: (\S+)\.", kept)
    return f" {found[1]}" if found else " unknown"


@pytest.mark.parametrize("task", ["niah_1", "niah_2", "niah_3"])
def test_one_reader_scores_the_same_on_their_samples_and_ours(task, writers, ruler):
    from lm_eval.tasks.ruler.common_utils import process_results

    random.seed(1)
    count = 200
    theirs = [
        process_results(line, [forgetful_reader(line["prompt"])])["4090"]
        for line in ruler.make(task, 4090, count)
    ]
    lines = [niah.sample(writers[task], task, 4090, n, 0, "nominal") for n in range(count)]
    ours = [contains_share(forgetful_reader(line["input"]), line["outputs"]) for line in lines]
    share = (sum(ours) + sum(theirs)) / (2 * count)
    assert 0.4 < share < 0.8
    error = math.sqrt(2 * share * (1 - share) / count)
    assert abs(sum(ours) - sum(theirs)) / count < 3 * error
