"""lm-eval's own `hf` model on an exported folder scores whole texts as our harness does.

It puts BOS before each text itself, so the tokenizer must not do it once more (docs/evaluation.md).
"""

import pytest
from tokenizers import Tokenizer

from forgetmenot import model as models
from forgetmenot.data.tokenizer_folder import save_tokenizer
from forgetmenot.evaluate.harness import HarnessModel
from forgetmenot.export import export

TEXTS = ["one two three four five six " * n for n in (1, 3, 7)]


class Request:
    def __init__(self, *args):
        self.args = args


def test_whole_texts_score_the_same_without_a_second_bos(lalte, words, tmp_path, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer = Tokenizer.from_file(str(words / "tokenizer.json"))
    for folder in ("model", "tokenizer"):
        (tmp_path / folder).mkdir()
    save_tokenizer(tmp_path / "tokenizer", tokenizer, "<s>", "</s>", "<unk>", {})
    models.save(lalte, tmp_path / "model")
    export(tmp_path / "model", tmp_path / "tokenizer", tmp_path / "exported")
    requests = [Request(text) for text in TEXTS]
    ours = HarnessModel(lalte, words, max_length=16, batch_size=2, device="cpu")
    expected = ours.loglikelihood_rolling(requests)

    def theirs(**options):
        options |= {"pretrained": str(tmp_path / "exported"), "device": "cpu", "batch_size": 3}
        return HFLM(max_length=16, **options).loglikelihood_rolling(requests)

    assert theirs(add_bos_token=False) == pytest.approx(expected, rel=1e-5)
    assert theirs() != pytest.approx(expected, rel=1e-2)
