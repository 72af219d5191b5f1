"""Rivals and controls of an update, on small real models: each equals what its definition says."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from prosg_small import SET, ids, make, others, tensors

from forgetmenot.data import prosg_pf
from forgetmenot.data.prosg.evalset import Record, read_records
from forgetmenot.data.prosg.world import World
from forgetmenot.evaluate.prosg import Options, measure
from forgetmenot.evaluate.prosg_controls import (
    Settings,
    start,
)
from forgetmenot.evaluate.prosg_rehearsal import joined
from forgetmenot.evaluate.prosg_rollout import Answers, roll_out
from forgetmenot.mixers.base import select_rows

TUNING = Settings(every=32, share=0.25, rate=20.0, rank=2, clip=1e6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prosg_pf")
    prosg_pf.build(SET, {}, path)
    return path


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    return World.load(folder)


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    return read_records(folder, "iid", "interfering", 4)


def run(control: str, model: Any, world: World, records: list[Record]) -> Answers:
    """All answers under a control, as the evaluator gets them."""
    with torch.inference_mode():
        begin = start(control, model, world, records, others(records), "cpu", TUNING)
        assert begin is not None
        distances = records[0].distances
        return roll_out(
            begin.model, world, records, begin.state, distances, "cpu", rehearsal=begin.rehearsal
        )


def nll(model: Any, world: World, question: str, answer: str, state: Any) -> float:
    logits_V = model(ids(world, question), state=state).logits_BLV[0, -1]
    return float(-logits_V.log_softmax(0)[world.ids[answer]])


def copied(state: Any) -> Any:
    return select_rows(state, torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("name", ["attention", "pinned"])
def test_attention_is_scored_like_a_recurrent_model(
    world: World, records: list[Record], name: str
) -> None:
    model = make(world, name)
    found = run("none", model, world, records)
    for row, record in enumerate(records):
        probe = record.probes[0]
        text = f"{record.prompt} {' '.join(record.body)} {probe.question}"
        with torch.inference_mode():
            expected = nll(model, world, text, probe.answer, None)
        assert found.nll[row, 0, 2] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["gdn", "rwkv4"])
def test_refeed_reads_the_prompt_again(world: World, records: list[Record], name: str) -> None:
    model = make(world, name)
    found = run("refeed", model, world, records)
    assert len({len(record.prompt.split()) for record in records}) > 1
    for row, record in enumerate(records):
        body = " ".join(record.body).split()
        parts = [" ".join(body[place : place + 32]) for place in (0, 32, 64)]
        text = f"{record.prompt} {parts[0]} {record.prompt} {parts[1]} {record.prompt} {parts[2]}"
        probe = record.probes[0]
        with torch.inference_mode():
            expected = nll(model, world, f"{text} {probe.question}", probe.answer, None)
        assert found.nll[row, 0, 2] == pytest.approx(expected, abs=1e-4)


def blended(now: Any, then: Any) -> Any:
    """A layer's state with three quarters of its own memory and a quarter of another's."""
    if hasattr(now, "wkv"):
        sums = [
            [x.double() * side.wkv.p.double().exp() for x in side.wkv[:2]] for side in (now, then)
        ]
        a, b = (0.75 * one + 0.25 * other for one, other in zip(*sums, strict=True))
        return now._replace(wkv=now.wkv._replace(a=a / b, b=torch.ones_like(b), p=b.log()))
    if hasattr(now, "memory_BHKV"):
        return now._replace(memory_BHKV=0.75 * now.memory_BHKV + 0.25 * then.memory_BHKV)
    return now


@pytest.mark.parametrize("name", ["gdn", "rwkv4"])
def test_refresh_blends_the_memory(world: World, records: list[Record], name: str) -> None:
    model = make(world, name)
    found = run("refresh", model, world, records)
    record = records[0]
    words = " ".join(record.body).split()
    with torch.inference_mode():
        kept = model(ids(world, record.prompt)).state
        state = model(ids(world, " ".join(words[:32])), state=copied(kept)).state
        for place in (32, 64):
            layers = zip(state.layers, kept.layers, strict=True)
            state = state._replace(layers=tuple(blended(now, then) for now, then in layers))
            part = " ".join(words[place : place + 32])
            state = model(ids(world, part), state=state).state
        probe = record.probes[0]
        expected = nll(model, world, probe.question, probe.answer, state)
    assert found.nll[0, 0, 2] == pytest.approx(expected, abs=1e-4)
    # What is due where a question is asked comes after it.
    plain = run("none", model, world, records)
    np.testing.assert_allclose(found.nll[..., 0], plain.nll[..., 0], rtol=1e-6)
    assert abs(found.nll[..., 1] - plain.nll[..., 1]).max() > 1e-4


def test_the_models_own_text_is_rehearsed_too(world: World, folder: Path) -> None:
    rows = read_records(folder, "iid", "self", 4)[:2]
    model = make(world, "rwkv4")
    found, plain = (run(control, model, world, rows) for control in ("refresh", "none"))
    assert found.nll.shape == plain.nll.shape
    assert abs(found.nll[..., 2] - plain.nll[..., 2]).max() > 1e-4


def test_the_prompt_is_read_twice(world: World, records: list[Record]) -> None:
    model = make(world, "gdn")
    found = run("prompt-twice", model, world, records)
    for row, record in enumerate(records):
        probe = record.probes[0]
        with torch.inference_mode():
            text = f"{record.prompt} {record.prompt} {probe.question}"
            expected = nll(model, world, text, probe.answer, None)
        assert found.nll[row, 0, 0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("control", "steps", "rank"), [("ttt-1", 1, None), ("ttt-rank-4", 4, 2)])
@pytest.mark.parametrize(
    ("name", "targets"), [("rwkv4", ("key", "value")), ("gdn", ("up", "down"))]
)
def test_tuning_follows_the_true_gradient(
    world: World,
    records: list[Record],
    name: str,
    targets: tuple[str, ...],
    control: str,
    steps: int,
    rank: int | None,
) -> None:
    """Against plain gradient descent on a copy of the model, one prompt at a time."""
    model = make(world, name)
    found = run(control, model, world, records)
    names = [f"layers.{n}.{target}.weight" for n in (1, 3) for target in targets]
    for row in (0, 3):
        record = records[row]
        prompt = ids(world, record.prompt)
        tuned = copy.deepcopy(model)
        weights = [dict(tuned.named_parameters())[place] for place in names]
        for _ in range(steps):
            logits_LV = tuned(prompt).logits_BLV[0, :-1]
            loss = F.cross_entropy(logits_LV, prompt[0, 1:])
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.data -= TUNING.rate * gradient
        before = dict(model.named_parameters())
        for place, weight in zip(names, weights, strict=True):
            if rank is not None:
                u, s, vh = torch.linalg.svd(weight.data - before[place].data)
                weight.data = before[place].data + u[:, :rank] * s[:rank] @ vh[:rank]
        with torch.inference_mode():
            state = model(prompt).state
            state = tuned(ids(world, record.body[0]), state=state).state
            probe = record.probes[0]
            expected = nll(tuned, world, probe.question, probe.answer, state)
        assert found.nll[row, 0, 1] == pytest.approx(expected, abs=2e-3)
    plain = run("none", model, world, records)
    assert abs(found.nll[..., 1] - plain.nll[..., 1]).max() > 0.05


def test_tuning_is_bounded(world: World, records: list[Record]) -> None:
    model = make(world, "rwkv4")
    bounded = Settings(rate=1e3, clip=0.1)
    with torch.inference_mode():
        begin = start("ttt-1", model, world, records, records, "cpu", bounded)
        assert begin is not None
        for n, block in enumerate(begin.state.update):
            for name, change_BOI in block.items():
                weight = getattr(model.layers[2 * n + 1], name).weight
                ratio_B = change_BOI.norm(dim=(1, 2)) / weight.norm()
                assert ratio_B.tolist() == pytest.approx([0.1] * len(records), rel=1e-4)


def test_rivals_that_do_not_apply_are_left_out(world: World, records: list[Record]) -> None:
    attention, prosg = make(world, "attention"), make(world, "gdn", {"generator": "g2"})
    for model, control in [
        (attention, "refresh"),
        (attention, "refeed"),
        (attention, "ttt-1"),
        (attention, "no-update"),
        (prosg, "ttt-rank-1"),
        (make(world, "gdn"), "adapter-only"),
        (make(world, "gdn", {"generator": "frozen_read"}), "random-update"),
    ]:
        assert start(control, model, world, records, records, "cpu", TUNING) is None


def test_joined_states_are_those_of_one_batch() -> None:
    state = (torch.arange(6.0).view(3, 2), {"x": torch.arange(3)}, 7)
    parts = [select_rows(state, torch.tensor(rows)) for rows in ([0, 2], [1])]
    back = select_rows(joined(parts), torch.tensor([0, 2, 1]))
    assert tensors(back) == tensors(state)
    with pytest.raises(ValueError, match=r"states: found \[7, 8\]"):
        joined([(7,), (8,)])


def test_session_memory_is_counted(folder: Path, world: World) -> None:
    model = make(world, "rwkv4")
    options = Options(controls=["none", "refresh", "refeed", "ttt-1", "ttt-rank-1", "no-prompt"])
    metrics, _ = measure(model, world, folder, options, "cpu")
    counted = [m for m in metrics if m["metric"] == "session_floats"]
    floats = {m["at"]["control"]: m["value"] for m in counted}
    state, weights = 5 * 2 * 16, 2 * 2 * 16 * 32
    rows = read_records(folder, "iid", "interfering", 4)
    assert floats == {
        "none": state,
        "refresh": state + 3 * 2 * 16,
        "refeed": state + max(len(row.prompt.split()) for row in rows),
        "ttt-1": state + weights,
        "ttt-rank-1": state + 2 * 2 * 4 * (16 + 32),
    }
