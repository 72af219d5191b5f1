import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from torch import nn
from train_stub import CountingStream, StubModel, small_options

from forgetmenot.errors import UserError
from forgetmenot.train.loop import Trainer
from forgetmenot.train.mixture import Source
from forgetmenot.train.setup import freeze

MakeTrainer = Callable[..., Trainer]
TIMES = ("seconds", "tokens_per_second")


class Interrupted(Exception):
    pass


def _curve(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key not in TIMES} for line in lines]


def _weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def _differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not torch.equal(one, other)


def test_it_learns_and_logs_what_it_writes(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    options = small_options(steps=120, tokens_per_step=128, learning_rate=3e-2)
    trainer = make_trainer(
        options=options, log=lambda metrics, step: logged.append((step, metrics))
    )
    trainer.run(tmp_path)
    curve = _curve(tmp_path)
    assert [line["step"] for line in curve] == list(range(4, 121, 4))
    assert curve[-1]["accuracy"] > 0.9 > 0.5 > curve[0]["accuracy"]  # type: ignore[operator]
    assert curve[-1]["tokens"] == trainer.tokens == 120 * 128
    assert [step for step, _ in logged] == [line["step"] for line in curve]
    assert logged[-1][1]["loss"] == curve[-1]["loss"]
    assert logged[-1][1]["kept/0/1"] == curve[-1]["kept"][0][1]  # type: ignore[index]


@pytest.mark.parametrize("stop", [1, 7, 10, 19])
def test_an_interrupted_run_ends_in_the_same_bits(
    make_trainer: MakeTrainer, tmp_path: Path, stop: int
) -> None:
    options = small_options(log_every=3, accumulate=2)
    sources = [
        Source("plain", CountingStream([4, 16]), 1.0),
        Source("prompted", CountingStream([8], prompt=5), 2.0),
    ]
    whole = make_trainer("whole", options, sources=sources)
    whole.run(tmp_path)
    expected, curve = _weights(whole), _curve(tmp_path)
    assert {"loss/plain", "loss/prompted", "kept", "lambda"} <= set().union(*curve)

    parts = make_trainer("parts", options, sources=sources)
    original, drawn = parts.mixture.batch, []

    def interrupt(step: int, *args: int, **kwargs: int) -> object:
        drawn.append(step)
        if step > stop:
            raise Interrupted
        return original(step, *args, **kwargs)

    parts.mixture.batch = interrupt  # type: ignore[method-assign, assignment]
    with pytest.raises(Interrupted):
        parts.run(tmp_path)
    resumed = make_trainer("parts", options, sources=sources)
    resumed.run(tmp_path)
    assert _same(expected, _weights(resumed))
    assert _curve(tmp_path) == curve


def test_a_finished_run_is_not_trained_again(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    first = make_trainer()
    first.run(tmp_path)
    curve = _curve(tmp_path)
    again = make_trainer()
    again._advance = pytest.fail  # type: ignore[method-assign, assignment]
    again.run(tmp_path)
    assert _same(_weights(first), _weights(again))
    assert _curve(tmp_path) == curve


def test_a_checkpoint_of_another_run_is_passed_over(
    make_trainer: MakeTrainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer().run(tmp_path)
    other = make_trainer(identity="other")
    other.run(tmp_path)
    assert "identity" in capsys.readouterr().err
    assert [line["step"] for line in _curve(tmp_path)] == [4, 8, 12, 16, 20, 24]


def test_micro_batches_average_their_gradients(make_trainer: MakeTrainer) -> None:
    class Fixed(CountingStream):
        def batch(self, rng, tokens):  # type: ignore[no-untyped-def]
            import numpy as np

            return super().batch(np.random.default_rng(0), 16)

    def no_dropout(model: nn.Module) -> None:
        model.dropout.p = 0.0  # type: ignore[union-attr]

    runs = []
    for accumulate in (1, 4):
        trainer = make_trainer(
            f"accumulate-{accumulate}",
            small_options(accumulate=accumulate),
            sources=[Source("fixed", Fixed([8]), 1.0)],
            prepare=no_dropout,
        )
        trainer._advance(trainer._draw(1))
        runs.append(_weights(trainer))
    for name in runs[0]:
        torch.testing.assert_close(runs[0][name], runs[1][name])


def test_only_the_generator_moves_when_the_rest_is_frozen(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(
        sources=[Source("prompted", CountingStream([8], prompt=5), 1.0)],
        prepare=lambda model: freeze(model, "generator"),
    )
    before = _weights(trainer)
    trainer.run(tmp_path)
    moved = {
        name for name, value in _weights(trainer).items() if not torch.equal(value, before[name])
    }
    assert moved == {"generator.weight", "generator.bias"}


def test_a_frozen_router_stays_as_it_is_and_leaves_the_rest_alone(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    options = small_options(router_freeze=0.5, weight_decay=0.5)
    trainer = make_trainer(options=options)
    before = _weights(trainer)
    for step in range(1, options.steps + 1):
        trainer._advance(trainer._draw(step))
        moved = {name for name, value in _weights(trainer).items() if _differs(value, before[name])}
        router = {"evict.scorer.weight", "evict.scorer.bias"}
        unused = {"generator.weight", "generator.bias"}
        assert moved == set(before) - unused - (router if step <= options.steps // 2 else set())
    assert trainer.optimizer.state["evict.scorer.weight"]["step"] == options.steps // 2


def test_freeze_names_what_is_allowed() -> None:
    with pytest.raises(UserError, match=r"'some'.*'all', 'generator'"):
        freeze(StubModel(), "some")
    with pytest.raises(UserError, match="no ProSG"):
        freeze(nn.Linear(1, 1), "generator")


def test_a_loss_that_is_not_finite_stops_with_a_dump(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    def poison(_metrics: dict[str, float], step: int) -> None:
        if step == 8:
            torch.nn.init.constant_(trainer.model.mix.bias, float("inf"))
            torch.nn.init.constant_(trainer.model.evict.scorer.weight, float("nan"))

    trainer = make_trainer(log=poison)
    with pytest.raises(UserError, match=r"step 9: found loss nan.*dump-step-9\.json"):
        trainer.run(tmp_path)
    report = json.loads((tmp_path / "work" / "dump-step-9.json").read_text())
    assert report["step"] == 9
    assert report["stream"] == "count"
    assert report["loss"] == "nan"
    assert report["layer"] == "mix"
    assert report["parameters"] == ["mix.bias", "evict.scorer.weight"]
    batch = load_file(tmp_path / "work" / report["batch"])
    drawn = trainer.mixture.batch(9, 32).arrays
    assert batch.keys() == drawn.keys()
    assert all((batch[key] == drawn[key]).all() for key in drawn)
    assert not (tmp_path / "curve.jsonl").exists()


def test_a_gradient_that_is_not_finite_stops_with_a_dump(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    def infinite_gradient(model: nn.Module) -> None:
        model.head.weight.register_hook(lambda grad: grad * float("inf"))  # type: ignore[union-attr]

    trainer = make_trainer(prepare=infinite_gradient)
    with pytest.raises(UserError, match=r"step 1: .*gradient norm"):
        trainer.run(tmp_path)
    report = json.loads((tmp_path / "work" / "dump-step-1.json").read_text())
    assert report["layer"] is None
    assert report["gradients"] == ["head.weight"]
