"""The command around lm-eval's own: our models are known to it, and bad input is one line."""

import lm_eval.__main__
import pytest
from lm_eval.api.registry import get_model

from forgetmenot.cli.lm_eval import main
from forgetmenot.errors import UserError
from forgetmenot.evaluate.harness import HarnessModel


def test_lm_evals_command_knows_our_models(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    command = lm_eval.__main__
    monkeypatch.setattr(command, "cli_evaluate", lambda: found.append(get_model("forgetmenot")))
    assert main() == 0
    assert found == [HarnessModel]


def test_bad_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise UserError("model_args: found [], allowed: model and tokenizer")

    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", refuse)
    assert main() == 2
    assert capsys.readouterr().err == "error: model_args: found [], allowed: model and tokenizer\n"
