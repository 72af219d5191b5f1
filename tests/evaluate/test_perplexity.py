import json
import math

import pytest

from forgetmenot.data.tokenizer_folder import load_tokenizer
from forgetmenot.errors import UserError
from forgetmenot.evaluate.perplexity import Options, measure
from forgetmenot.evaluate.score import ratio_stderr

# The second one would be read as a list, the third one lose its line break, if they passed through
# a template.
TEXTS = ["one two three four five", "[1, 2, 3, 4, 5]", "six é six\n", "two"]


@pytest.fixture
def heldout(words):
    lines = [
        json.dumps({"id": f"doc{index}", "text": text, "source": "test"}, ensure_ascii=False)
        for index, text in enumerate(TEXTS)
    ]
    (words / "heldout.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return words


def values(metrics):
    assert all(entry["at"] == {} for entry in metrics)
    return {entry["metric"]: entry["value"] for entry in metrics}


def test_uniform_model_has_the_vocabulary_as_token_perplexity(uniform, heldout, no_network):
    metrics, _ = measure(uniform, heldout, Options(max_length=4), "cpu")
    found = values(metrics)
    tokens, letters = 5 + 5 + 3 + 1, sum(len(text.encode()) for text in TEXTS)
    assert found["token_perplexity"] == pytest.approx(11, rel=1e-6)
    assert found["loss"] == pytest.approx(math.log(11), rel=1e-6)
    assert found["byte_perplexity"] == pytest.approx(11 ** (tokens / letters), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(math.log2(11) * tokens / letters, rel=1e-6)


def test_each_document_starts_from_bos(trigram, heldout):
    metrics, samples = measure(trigram, heldout, Options(max_length=64, batch_size=2), "cpu")
    tokenizer = load_tokenizer(heldout)
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    losses = [-sum(trigram.log_probabilities(row)) for row in ids]
    tokens = [len(row) - 1 for row in ids]
    assert [sample["loss"] for sample in samples] == pytest.approx(
        [loss / count for loss, count in zip(losses, tokens, strict=True)], rel=1e-5
    )
    assert [sample["tokens"] for sample in samples] == tokens
    assert [sample["id"] for sample in samples] == ["doc0", "doc1", "doc2", "doc3"]

    loss, stderr = ratio_stderr(losses, tokens)
    by_name = {entry["metric"]: entry for entry in metrics}
    assert by_name["loss"]["value"] == pytest.approx(loss, rel=1e-5)
    assert by_name["loss"]["n"] == len(TEXTS)
    assert by_name["token_perplexity"]["stderr"] == pytest.approx(math.exp(loss) * stderr, rel=1e-4)


def test_only_the_first_documents(trigram, heldout):
    metrics, samples = measure(trigram, heldout, Options(max_length=8, documents=1), "cpu")
    assert [sample["id"] for sample in samples] == ["doc0"]
    assert all(entry["n"] == 1 and entry["stderr"] is None for entry in metrics)
    expected = math.exp(-sum(trigram.log_probabilities([0, 2, 3, 4, 5, 6])) / 5)
    assert values(metrics)["word_perplexity"] == pytest.approx(expected, rel=1e-5)


def test_refuses_an_empty_document(trigram, heldout):
    (heldout / "heldout.jsonl").write_text('{"id": "void", "text": " ", "source": "test"}\n')
    with pytest.raises(UserError, match="document void is empty"):
        measure(trigram, heldout, Options(max_length=8), "cpu")
