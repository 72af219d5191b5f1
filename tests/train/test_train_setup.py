import json
from pathlib import Path

import pytest

from forgetmenot.data import mqar
from forgetmenot.errors import UserError
from forgetmenot.train import setup

MEMBER = {"dataset": "mqar", "builder": "mqar", "weight": 1.0, "options": {"pairs": [2]}}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    mqar.build(mqar.Options(pairs=[2], keys=8, values=8, samples=1), {}, tmp_path / "mqar")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "meta.json").write_text(json.dumps({"vocab_size": 99}))
    return {"mqar": tmp_path / "mqar", "other": tmp_path / "other"}


def test_the_vocabulary_is_the_largest_of_the_data(inputs: dict[str, Path]) -> None:
    assert setup.vocabulary([MEMBER], inputs) == 16
    assert setup.vocabulary([MEMBER, {**MEMBER, "dataset": "other"}], inputs) == 99


def test_a_dataset_may_be_named_twice(inputs: dict[str, Path]) -> None:
    twice = setup.mixture([MEMBER, {**MEMBER, "options": {"pairs": [4]}}], inputs, seed=0)
    assert [source.name for source in twice.sources] == ["mqar", "mqar#2"]
    batch = twice.sources[1].stream
    assert batch.layouts[0].pairs == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"builder": "nothing"}, "'nothing'"),
        ({"options": {"pears": [2]}}, "mqar: .*pears"),
        ({"options": {"pairs": []}}, "mqar: pairs"),
        ({"weight": 0.0}, "weights"),
    ],
)
def test_a_bad_member_is_one_clear_error(
    inputs: dict[str, Path], change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        setup.mixture([{**MEMBER, **change}], inputs, seed=0)


def test_bad_training_options_are_one_clear_error() -> None:
    with pytest.raises(UserError, match=r"train: .*stepps"):
        setup.options({"stepps": 1})
    with pytest.raises(UserError, match="train: steps: found 0"):
        setup.options({"steps": 0})


def test_an_unknown_device_is_one_clear_error() -> None:
    with pytest.raises(UserError, match="device: found 'tpu'"):
        setup.accelerator("tpu", "fp32")
