"""Stages of training: what is frozen, for how long, and at which rate (construction 6.4)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from train_stub import CountingStream, small_options

from forgetmenot.config_files import read_yaml
from forgetmenot.errors import UserError
from forgetmenot.train.loop import Trainer
from forgetmenot.train.mixture import Mixture, Source
from forgetmenot.train.optimizer import AdamW
from forgetmenot.train.options import Options
from forgetmenot.train.setup import freeze

Make = Callable[..., Any]


def take_step(made: Any, optimizer: AdamW, step: int, rate: float = 1e-2) -> set[str]:
    """A step with a gradient of one everywhere; the parts (first names) that moved."""
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.drop_frozen(step)
    optimizer.step(rate)
    moved = {name for name, p in made.named_parameters() if not torch.equal(p, before[name])}
    return {name.split(".")[0] for name in moved}


@pytest.mark.parametrize(
    ("trainable", "parts"),
    [("all", {"base", "generator"}), ("generator", {"generator"}), ("base", {"base"})],
)
def test_trainable_parts(trainable: str, parts: set[str], fresh: Make) -> None:
    made = fresh("gdn")
    freeze(made, trainable)
    assert take_step(made, AdamW(made, Options()), 1) == parts


def test_the_base_joins_after_base_start(fresh: Make) -> None:
    made = fresh("gdn")
    optimizer = AdamW(made, Options(steps=10, base_start=0.3))
    moved = [take_step(made, optimizer, step) for step in range(1, 6)]
    assert moved == [{"generator"}] * 3 + [{"base", "generator"}] * 2


def test_the_base_learns_at_its_own_rate(fresh: Make) -> None:
    steps = {}
    for ratio in (1.0, 0.1):
        made = fresh("gdn")
        before = {name: p.detach().clone() for name, p in made.named_parameters()}
        optimizer = AdamW(made, Options(base_lr_ratio=ratio, weight_decay=0.0))
        take_step(made, optimizer, 1)
        steps[ratio] = {n: (p - before[n]).abs().mean() for n, p in made.named_parameters()}
    for name, size in steps[1.0].items():
        factor = 0.1 if name.startswith("base.") else 1.0
        torch.testing.assert_close(steps[0.1][name], factor * size)


def test_stages_are_refused_where_there_is_nothing_to_stage(fresh: Make, plain: Make) -> None:
    frozen = fresh("gdn")
    freeze(frozen, "generator")
    for made in (plain("gdn"), frozen):
        for option, found in ({"base_start": 0.5}, "0.5"), ({"base_lr_ratio": 0.1}, "0.1"):
            name = next(iter(option))
            with pytest.raises(
                UserError, match=f"train: {name}: found {found}, allowed: .* unless"
            ):
                AdamW(made, Options(**option))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sg_weight", -0.1),
        ("rec_weight", -1.0),
        ("kl_weight", -1.0),
        ("kl_window", 0),
        ("base_start", 1.5),
        ("base_lr_ratio", -0.1),
        ("sg_teacher", "both"),
        ("sg_distance", "l1"),
    ],
)
def test_a_bad_value_is_named_with_what_was_found(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{key}: found {value!r}, allowed"):
        Options(**{key: value})  # type: ignore[arg-type]


def test_the_curve_has_every_term_and_ratio(fresh: Make, tmp_path: Path) -> None:
    """Both stages through the real loop, continued from a checkpoint in the second."""
    options = small_options(
        rec_weight=0.1, kl_weight=0.1, sg_weight=0.1, base_start=0.5, base_lr_ratio=0.1, steps=8
    )
    weights = []
    for work, stops in (("whole", [8]), ("parts", [6, 8])):
        for stop in stops:
            made = fresh("gdn", "g2").float()
            trainer = Trainer(
                made,
                Mixture([Source("count", CountingStream([8], prompt=5), 1.0)], seed=3),
                options,
                accelerator=Accelerator(cpu=True),
                work=tmp_path / work,
                identity="run",
                log=lambda _metrics, _step: None,
            )
            if stop < 8:
                for step in range(1, stop):  # killed behind the checkpoint of step 5
                    trainer._advance(trainer._draw(step))
                    if step == options.checkpoint_every:
                        trainer._save()
            else:
                trainer.run(tmp_path)
        weights.append({name: p.detach() for name, p in made.named_parameters()})
    assert all(torch.equal(p, weights[1][name]) for name, p in weights[0].items())
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    terms = {"loss", "lm_loss", "prompt_loss", "update_norm", "rec_loss", "kl_loss", "sg_loss"}
    ratios = {f"update_ratio/{n}/{name}" for n in (0, 1) for name in ("up", "down")}
    assert terms | ratios <= set(lines[-1])
    assert all(lines[-1][name] > 0 for name in ratios)


@pytest.mark.parametrize("backbone", ["rwkv4", "rwkv7", "retnet", "gdn"])
def test_rivals_that_keep_a_memory_are_trained_as_prosg_is(backbone: str) -> None:
    models = Path(__file__).parents[2] / "workflow" / "config" / "models"
    prosg, *rivals = (
        read_yaml(models / f"{backbone}_{arm}.yaml") for arm in ("prosg", "frozen_read", "offset")
    )
    for rival in rivals:
        assert (rival["train"], rival["trainable"]) == (prosg["train"], prosg["trainable"])
