"""Needle in a haystack: prompts against the benchmark's wording, rows against whole prompts."""

import hashlib
import json
import re

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from forgetmenot.data import bpe_tokenizer, niah, niah_haystack, niah_text
from forgetmenot.data.tokenizer_folder import load_tokenizer, save_tokenizer
from forgetmenot.errors import UserError
from forgetmenot.files import write_json, write_text

TASKS = ["niah_1", "niah_2", "niah_3"]
OPTIONS = niah.Options(TASKS, [800, 1000], samples=8)
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
PROMPT = re.compile(
    r"A special magic (number|uuid) is hidden within the following text\. Make sure to memorize "
    r"it\. I will quiz you about the \1 afterwards\.\n(?P<context>.*)\n"
    r"What is the special magic \1 for (?P<key>[a-z]+-[a-z]+) mentioned in the provided text\? "
    r"The special magic \1 for (?P=key) mentioned in the provided text is",
    re.DOTALL,
)
UUID4 = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


def training_rng(seed, step):
    return np.random.Generator(np.random.Philox(key=[seed, step]))


def made_text(rng, mark):
    """25 sentences of 8 words, each ending in `mark` and a full stop, with untidy white space."""
    words = ["state", "mountain", "people,", "water", "great"]
    words += ["(river)", "house", "garden", "winter's", "answer"]
    drawn = [words[i] for i in rng.integers(len(words), size=200)]
    sentences = [" ".join(drawn[i : i + 8]) + mark for i in range(0, 200, 8)]
    return ".\n  ".join(sentences) + "."


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A corpus whose held-out and training sentences can be told apart, and a tokenizer."""
    corpus, tokenizer = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("bpe")
    rng, sizes = np.random.default_rng(0), {}
    for split, mark in (("train", " known"), ("heldout", " fresh")):
        texts = [made_text(rng, mark) for _ in range(20)]
        lines = [{"id": str(i), "source": "made", "text": text} for i, text in enumerate(texts)]
        sizes[split] = {"words": sum(len(text.split()) for text in texts), "bytes": 30_000}
        write_text(corpus / f"{split}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_json(corpus / "meta.json", {"splits": sizes})
    bpe_tokenizer.build(bpe_tokenizer.Options(vocab_size=310), {"words": corpus}, tokenizer)
    return {"words": corpus, "bpe": tokenizer}


@pytest.fixture(scope="module")
def built(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("niah")
    niah.build(OPTIONS, inputs, out)
    return out


def read_lines(built, task, length):
    lines = (built / "test" / f"{task}-{length}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def parse(task, prompt, value):
    """(key, context before the needle, context after it) of a prompt in the exact wording."""
    match = PROMPT.fullmatch(prompt)
    kind = "uuid" if task == "niah_3" else "number"
    assert match
    assert match[1] == kind
    assert re.fullmatch(UUID4 if kind == "uuid" else "[1-9][0-9]{6}", value)
    needle = f"One of the special magic {kind}s for {match['key']} is: {value}."
    before, after = match["context"].split(needle)
    return match["key"], before, after


def check_haystack(task, before, after, text):
    """The haystack is the one of `task`; returns the needle's depth in percent."""
    if task == "niah_1":
        lines = [*before.splitlines(), *after.split("\n")[1:]]
        assert set(lines) == {NOISE}
        return round(100 * len(before.splitlines()) / len(lines))
    assert before == "" or before.endswith(". ") or after == ""  # never inside a sentence
    assert (before + after.removeprefix(" ")).strip() in " ".join(text.split())
    sentences = (before.strip() + after).count(".") + (not (before + after).endswith("."))
    return {
        depth for depth in niah_text.DEPTHS if sentences * depth // 100 == before.count(". ")
    } | ({100} if after == "" else set())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", OPTIONS.lengths)
def test_prompts_are_the_benchmarks_and_fill_their_length(built, inputs, task, length):
    tokenizer = load_tokenizer(inputs["bpe"])
    text = " ".join(json.loads(line)["text"] for line in (inputs["words"] / "heldout.jsonl").open())
    lines = read_lines(built, task, length)
    assert [line["index"] for line in lines] == list(range(OPTIONS.samples))
    for line in lines:
        assert line["id"] == f"{task}-{length}-{line['index']}"
        assert (line["task"], line["length"]) == (task, length)
        (value,) = line["outputs"]
        ids = tokenizer.encode(line["input"]).ids  # the template puts BOS in front
        assert ids[0] == 0
        assert line["tokens"] == len(ids)
        answer = tokenizer.encode(f" {value}", add_special_tokens=False).ids
        unit = "\n" + NOISE if task == "niah_1" else " (mountains)"
        room = len(tokenizer.encode(unit, add_special_tokens=False).ids) + 3
        assert length - room < len(ids) + len(answer) <= length
        assert value in tokenizer.decode(ids)
        key, before, after = parse(task, line["input"], value)
        assert key in niah_text.KEYS["test"]
        depth = check_haystack(task, before, after, text)
        assert line["depth"] == depth or line["depth"] in depth


def test_a_sample_does_not_depend_on_the_others(built, inputs, tmp_path):
    niah.build(niah.Options(["niah_3"], [1000], samples=3), inputs, tmp_path)
    few, many = read_lines(tmp_path, "niah_3", 1000), read_lines(built, "niah_3", 1000)
    assert few == many[:3]
    assert len({line["outputs"][0] for line in many}) == len(many)
    niah.build(niah.Options(["niah_3"], [1000], samples=3, seed=1), inputs, tmp_path)
    assert read_lines(tmp_path, "niah_3", 1000)[0]["outputs"] != few[0]["outputs"]


def test_builds_and_batches_are_deterministic(built, inputs, tmp_path):
    niah.build(OPTIONS, inputs, tmp_path)
    files = [path.relative_to(built) for path in built.rglob("*") if path.is_file()]
    assert len(files) == len(TASKS) * len(OPTIONS.lengths) + 4
    assert all((built / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)
    drawn = [[line["depth"], line["outputs"]] for line in read_lines(built, "niah_2", 1000)]
    digest = hashlib.sha256(json.dumps(drawn).encode()).hexdigest()
    assert digest[:16] == "d4409240ae456cc7"
    stream = niah.Stream(built, niah.StreamOptions([800], TASKS))
    again = niah.Stream(tmp_path, niah.StreamOptions([800], TASKS))
    again.batch(training_rng(3, 8), 1000)
    first, second = stream.batch(training_rng(3, 7), 1000), again.batch(training_rng(3, 7), 1000)
    for key in ("input_ids", "labels"):
        assert first[key].tobytes() == second[key].tobytes()
    assert (
        first["input_ids"].tobytes()
        != stream.batch(training_rng(3, 8), 1000)["input_ids"].tobytes()
    )


@pytest.mark.parametrize("answer_only", [True, False])
def test_training_rows_are_whole_documents(built, inputs, answer_only):
    tokenizer = load_tokenizer(inputs["bpe"])
    text = (built / "haystack.txt").read_text()
    options = niah.StreamOptions([800, 900], TASKS, answer_only)
    stream = niah.Stream(built, options)
    seen = set()
    for step in range(12):
        batch = stream.batch(training_rng(0, step), 2000)
        assert batch["input_ids"].dtype == batch["labels"].dtype == np.int64
        rows, length = batch["input_ids"].shape
        assert rows == 2000 // length
        for input_ids_T, labels_T in zip(batch["input_ids"], batch["labels"], strict=True):
            end = int(np.flatnonzero(labels_T == 1)[-1])  # where EOS (id 1) is the target
            document = [*input_ids_T[: end + 1].tolist(), 1]
            assert (input_ids_T[end + 2 :] == 2).all()
            assert (labels_T[end + 1 :] == -100).all()
            assert document[:-1] == tokenizer.encode(tokenizer.decode(document)).ids
            prompt, value = tokenizer.decode(document).rsplit(" ", 1)
            task = "niah_3" if "uuid" in prompt else "niah_1" if NOISE in prompt else "niah_2"
            key, before, after = parse(task, prompt, value)
            assert key in niah_text.KEYS["train"]
            check_haystack(task, before, after, text)
            answer = len(tokenizer.encode(f" {value}", add_special_tokens=False).ids) + 1
            scored = answer if answer_only else len(document) - 1
            expected = [-100] * (len(document) - 1 - scored) + document[-scored:]
            assert labels_T[: end + 1].tolist() == expected
            seen.add((task, length))
    assert seen == {(task, length) for task in TASKS for length in (800, 900)}


@pytest.mark.parametrize("task", ["niah_1", "niah_2"])
def test_units_have_the_tokens_they_have_in_the_text(built, inputs, task):
    writer = niah.Stream(built, niah.StreamOptions([8000], [task])).writers[task]
    haystack, tokenizer = writer.haystack, load_tokenizer(inputs["bpe"])
    text = haystack.joiner + haystack.joiner.join(haystack.units)
    assert haystack.ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
    assert len(haystack.offsets) == len(haystack.units) + 1
    for i in (0, 1, len(haystack.units) // 2, len(haystack.units) - 1):
        unit = haystack.ids[haystack.offsets[i] : haystack.offsets[i + 1]].tolist()
        assert tokenizer.decode(unit) == haystack.joiner + haystack.units[i]
    if task == "niah_2":
        assert len(haystack.units) > 2 * niah_haystack.CHUNK_UNITS
        assert {haystack.units[start - 1] for start in haystack.starts} == {"known."}


def test_keys_of_the_splits_are_disjoint_and_many():
    train, test = (set(niah_text.KEYS[split]) for split in ("train", "test"))
    assert not train & test
    assert min(len(train), len(test)) > 2000
    words = [{word for key in split for word in key.split("-")} for split in (train, test)]
    assert words[0] == words[1]


@pytest.mark.parametrize("task", ["niah_1", "niah_2"])
def test_depths_are_uniform(built, task):
    writer = niah.Stream(built, niah.StreamOptions([1500], [task])).writers[task]
    rng = training_rng(1, 0)
    needle = writer.draw(rng, task, "train", 1500)
    places = [writer.place(rng, needle, 1500) for _ in range(4000)]
    depths, counts = np.unique([place.depths[0] for place in places], return_counts=True)
    if task == "niah_2":
        assert depths.tolist() == niah_text.DEPTHS
    else:
        lines = places[0].end
        assert depths.tolist() == [round(100 * line / lines) for line in range(lines)]
    expected = 4000 / len(depths)
    # Four standard deviations of a binomial count; the seed is fixed.
    assert np.abs(counts - expected).max() < 4 * np.sqrt(expected)


@pytest.mark.parametrize("task", TASKS)
def test_too_short_lengths_name_the_shortest_possible(built, inputs, tmp_path, task):
    message = f"{task} at length [0-9]+: found no room .* allowed: [0-9]+ tokens or more"
    with pytest.raises(UserError, match=message) as error:
        niah.build(niah.Options([task], [1000, 60]), inputs, tmp_path)
    with pytest.raises(UserError, match=message):
        niah.Stream(built, niah.StreamOptions([1000, 60], [task]))
    least = int(re.search(r"allowed: (\d+)", str(error.value))[1])
    with pytest.raises(UserError, match=f"allowed: {least} "):
        niah.build(niah.Options([task], [least - 1]), inputs, tmp_path)
    niah.build(niah.Options([task], [least], samples=20), inputs, tmp_path)
    for line in read_lines(tmp_path, task, least):
        _, before, after = parse(task, line["input"], *line["outputs"])
        assert len(before + after) > 8


def test_too_little_prose_is_refused(built, inputs, tmp_path):
    with pytest.raises(UserError, match=r"niah_2 at length 90000: found a haystack of [0-9]+ tok"):
        niah.build(niah.Options(["niah_2"], [90_000], samples=1), inputs, tmp_path)
    with pytest.raises(UserError, match=r"niah_3 at length 90000: found a haystack of [0-9]+ tok"):
        niah.Stream(built, niah.StreamOptions([90_000], ["niah_3"]))


def test_prose_is_drawn_from_all_over_a_split(inputs):
    corpus = inputs["words"]
    for words in (1000, 2000, 3000):
        text = niah_haystack.draw_text(corpus, "train", words).split()
        assert words // 2 <= len(text) <= words
    texts = [json.loads(line)["text"] for line in (corpus / "train.jsonl").open()]
    assert " ".join(text[:100]) not in " ".join(texts[0].split())
    assert niah_haystack.draw_text(corpus, "heldout", 10**6).count("fresh.") == 500


def test_missing_inputs_are_named(inputs, tmp_path):
    with pytest.raises(UserError, match=r"exactly one input with tokenizer.json, found \[\]"):
        niah.build(OPTIONS, {"words": inputs["words"]}, tmp_path)
    with pytest.raises(UserError, match=r"exactly one input with heldout\.jsonl"):
        niah.build(OPTIONS, {"bpe": inputs["bpe"]}, tmp_path)


@pytest.fixture
def characters(tmp_path):
    """Makes a tokenizer of single characters; those of `missing` become <unk>."""

    def make(missing, normalizer):
        known = sorted({*map(chr, range(32, 127)), "\n"} - set(missing))
        ids = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", "<unk>", *known])}
        tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r".|\n"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        tokenizer.normalizer = normalizer
        save_tokenizer(tmp_path / "characters", tokenizer, "<s>", "</s>", "<pad>", {})
        return tmp_path / "characters"

    return make


def test_values_that_the_tokenizer_loses_are_refused(inputs, tmp_path, characters):
    changed = {**inputs, "bpe": characters("4", None)}  # every version 4 UUID has a 4
    with pytest.raises(UserError, match=r"niah_3 at length 1500: the tokenizer does not preserve"):
        niah.build(niah.Options(["niah_3"], [1500], samples=1), changed, tmp_path)


def test_a_tokenizer_that_reaches_across_words(inputs, tmp_path, characters):
    """Spaces are lost only at the ends of a text, so a whole is longer than its pieces."""
    changed = {**inputs, "bpe": characters("", normalizers.Strip())}
    options = niah.Options(["niah_2"], [1500], samples=4)
    niah.build(options, changed, tmp_path)
    for line in read_lines(tmp_path, "niah_2", 1500):
        assert 1480 < line["tokens"] + len(line["outputs"][0]) <= 1500
        parse("niah_2", line["input"], *line["outputs"])
    with pytest.raises(UserError, match="tokens reach across words, allowed: byte-level BPE"):
        niah.Stream(tmp_path, niah.StreamOptions([1500], ["niah_2"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": [], "lengths": [512]}, r"tasks: found \[\]"),
        ({"tasks": TASKS, "lengths": [512, 512]}, r"lengths: found \[512, 512\]"),
        ({"tasks": TASKS, "lengths": [512], "samples": 0}, "samples: found 0"),
        ({"tasks": TASKS, "lengths": [512], "words": 0}, "words: found 0"),
    ],
)
def test_bad_options_name_the_key(options, message):
    with pytest.raises(ValueError, match=message):
        niah.Options(**options)


@pytest.mark.parametrize("key", ["tasks", "lengths"])
def test_bad_stream_options_name_the_key(key):
    with pytest.raises(ValueError, match=f"{key}: found an empty list"):
        niah.StreamOptions(**{"tasks": TASKS, "lengths": [512], key: []})


def test_brief_rows_leave_out_instructions_and_question(built, inputs):
    tokenizer = load_tokenizer(inputs["bpe"])
    stream = niah.Stream(built, niah.StreamOptions([800], ["niah_1"], brief=[300]))
    lengths = set()
    for step in range(12):
        batch = stream.batch(training_rng(0, step), 800)
        lengths.add(batch["input_ids"].shape[1])
        if batch["input_ids"].shape[1] == 300:
            for input_ids_T, labels_T in zip(batch["input_ids"], batch["labels"], strict=True):
                scored = np.flatnonzero(labels_T != -100)
                text = tokenizer.decode(input_ids_T[: scored[0] + 1].tolist())
                value = tokenizer.decode(labels_T[scored].tolist()).strip()
                assert niah_text.HEADER.split("{kind}")[0] not in text
                assert "What is" not in text
                assert text.count(f": {value}.") == 1
                assert text.endswith("mentioned in the provided text is")
    assert lengths == {300, 800}


def test_essays_of_a_folder_are_the_haystack(inputs, tmp_path):
    essays, out = tmp_path / "essays", tmp_path / "out"
    essays.mkdir()
    options = niah.Options(["niah_2"], [1500], samples=2, essays=str(essays), fill="nominal")
    with pytest.raises(UserError, match=r"essays: .* holds no text; allowed: a folder"):
        niah.build(options, inputs, out)
    for name, word in (("b", "second"), ("a", "first")):
        (essays / f"{name}.txt").write_text(f"A {word} sentence stands\nhere. " * 400)
    with pytest.raises(UserError, match="niah_2 at nominal length 1500: found no room for 500"):
        niah.build(options, inputs, out)
    niah.build(niah.Options(["niah_2"], [4500], samples=2, essays=str(essays)), inputs, out)
    for line in read_lines(out, "niah_2", 4500):
        _, before, after = parse("niah_2", line["input"], *line["outputs"])
        assert "A first sentence stands here." in before + after or "A second" in before + after
        assert "known" not in line["input"]
    assert json.loads((out / "meta.json").read_text())["haystack"] == "essays"
    assert "known" in (out / niah.TRAIN_TEXT).read_text()
