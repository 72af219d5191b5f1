"""Controls on an update, its harm, size and likeness to a true gradient, on small models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from prosg_small import SET, ids, make, others, tensors

from forgetmenot import model as models
from forgetmenot.data import prosg_pf
from forgetmenot.data.prosg.evalset import Record, read_records
from forgetmenot.data.prosg.world import World
from forgetmenot.errors import UserError
from forgetmenot.evaluate.prosg import Options, measure
from forgetmenot.evaluate.prosg_controls import EMPTY, controlled_state, prompt_state
from forgetmenot.evaluate.prosg_harm import general_nll
from forgetmenot.evaluate.prosg_rollout import roll_out
from forgetmenot.mixers.base import select_rows


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


@pytest.mark.parametrize("generator", ["g2", "frozen_read"])
def test_controls_change_the_update_alone(
    world: World, records: list[Record], generator: str
) -> None:
    model = make(world, "gdn", {"generator": generator})
    with torch.inference_mode():
        own = prompt_state(model, world, [record.prompt for record in records], "cpu")
        changed = {
            control: controlled_state(control, model, world, records, others(records), "cpu")
            for control in ("wrong-update", "empty-update", "shuffled-update", "adapter-only")
        }
        wrong = prompt_state(model, world, [r.prompt for r in others(records)], "cpu")
        empty = prompt_state(model, world, [EMPTY], "cpu")
    assert tensors(changed["wrong-update"].update) == tensors(wrong.update)
    first = tensors(select_rows(changed["empty-update"].update, torch.tensor([2])))
    for found, expected in zip(first, tensors(empty.update), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert tensors(changed["shuffled-update"].update[0]) == tensors(own.update[1])
    assert tensors(changed["shuffled-update"].update[1]) == tensors(own.update[0])
    assert changed["adapter-only"].layers == ()
    assert tensors(changed["adapter-only"].update) == tensors(own.update)
    for control in ("wrong-update", "empty-update", "shuffled-update"):
        assert tensors(changed[control].layers) == tensors(own.layers)
        assert tensors(changed[control].update) != tensors(own.update)


def test_the_adapter_alone_answers_from_nothing_else(world: World, records: list[Record]) -> None:
    model = make(world, "rwkv4", {"generator": "g1", "width": 8})
    with torch.inference_mode():
        alone = controlled_state("adapter-only", model, world, records, records, "cpu")
        found = roll_out(model, world, records, alone, records[0].distances, "cpu")
    for row, record in enumerate(records):
        with torch.inference_mode():
            state = model.commit_prompt(model(ids(world, record.prompt)).state)
            state = models.State((), state.update)
            probe = record.probes[1]
            text = f"{' '.join(record.body)} {probe.question}"
            logits_V = model(ids(world, text), state=state).logits_BLV[0, -1]
            expected = float(-logits_V.log_softmax(0)[world.ids[probe.answer]])
        assert found.nll[row, 1, 2] == pytest.approx(expected, abs=1e-4)


def test_a_random_update_has_the_norm_of_the_own(world: World, records: list[Record]) -> None:
    model = make(world, "rwkv4", {"generator": "g1", "width": 8})

    def state(control: str, rows: list[Record]) -> Any:
        with torch.inference_mode():
            return controlled_state(control, model, world, rows, rows, "cpu")

    own, drawn = state("none", records), state("random-update", records)
    alone = state("random-update", records[2:3])
    for mine, other, single in zip(own.update, drawn.update, alone.update, strict=True):
        for name in mine:
            norm_B = mine[name].squared_norm()
            torch.testing.assert_close(other[name].squared_norm(), norm_B)
            assert not torch.allclose(other[name].change(), mine[name].change())
            torch.testing.assert_close(single[name].change()[0], other[name].change()[2])


@pytest.fixture(scope="module")
def measured(folder: Path, world: World) -> list[dict[str, Any]]:
    model = make(world, "rwkv4", {"generator": "g1", "width": 8, "clip": 100.0})
    options = Options(batch_size=2, gradients=3, controls=["none"])
    return measure(model, world, folder, options, "cpu")[0]


def by_name(metrics: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [m for m in metrics if m["metric"] == name]


def test_harm_compares_the_same_text_with_and_without(measured: list[dict[str, Any]]) -> None:
    nats = {m["at"]["control"]: m["value"] for m in by_name(measured, "general_nll")}
    assert set(nats) == {"none", "no-update"}
    (ratio,) = by_name(measured, "harm_ppl_ratio")
    assert ratio["at"] == {"facts": 4, "control": "none"}
    assert ratio["value"] == pytest.approx(np.exp(nats["none"] - nats["no-update"]))
    assert ratio["value"] != 1
    assert ratio["n"] == SET.samples


def test_an_update_of_zero_does_no_harm(folder: Path, world: World) -> None:
    model = make(world, "rwkv4", {"generator": "g1", "width": 8})
    for head in model.generator.left.values():
        head.weight.data.zero_()
    metrics, samples = measure(model, world, folder, Options(controls=["none"]), "cpu")
    assert [m["value"] for m in by_name(metrics, "harm_ppl_ratio")] == [1.0]
    lines = [s for s in samples if "general_nll" in s]
    assert {s["at"]["control"] for s in lines} == {"none", "no-update"}
    assert len({s["cluster"] for s in lines}) == SET.samples
    ratios = by_name(metrics, "update_ratio")
    assert {m["value"] for m in ratios} == {0.0}


def test_every_target_has_a_size_and_a_cosine(
    world: World, records: list[Record], measured: list[dict[str, Any]]
) -> None:
    places = {(n, target) for n in (0, 1) for target in ("key", "value")}
    ratios = by_name(measured, "update_ratio")
    assert {(m["at"]["block"], m["at"]["target"]) for m in ratios} == places
    assert all(m["n"] == SET.samples and m["value"] > 0 for m in ratios)
    cosines = by_name(measured, "gradient_cosine")
    assert {m["at"]["teacher"] for m in cosines} == {"prompt", "response"}
    assert len(cosines) == 2 * len(places)
    assert all(m["n"] == 3 for m in cosines)
    model = make(world, "rwkv4", {"generator": "g1", "width": 8, "clip": 100.0})
    weight = model.base.layers[1].key.weight
    for teacher in ("prompt", "response"):
        expected = [dense_cosine(model, weight, world, r, teacher) for r in records[:3]]
        (found,) = [
            m["value"]
            for m in cosines
            if m["at"] == {"facts": 4, "block": 0, "target": "key", "teacher": teacher}
        ]
        assert found == pytest.approx(np.mean(expected), abs=0.01)


def dense_cosine(
    model: Any, weight: torch.Tensor, world: World, record: Record, teacher: str
) -> float:
    """Cosine of the first block's key update and the gradient of its weight, in full."""
    prompt = ids(world, record.prompt)
    out = model.base(prompt)
    update = model.commit_prompt(out.state).update[0]["key"]
    losses = [F.cross_entropy(out.logits_BLV[0, :-1], prompt[0, 1:])]
    if teacher == "response":
        losses, state = [], out.state
        state = models.State(tuple(detached(layer) for layer in state.layers))
        for probe in record.probes:
            asked = ids(world, f"{probe.question} {probe.answer} .")
            after = model.base(asked, state)
            losses.append(F.cross_entropy(after.logits_BLV[0, -3:-2], asked[0, -2:-1]))
            state = after.state
    (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), weight)
    product = update.left_BOR[0] @ update.right_BIR[0].mT
    return float(F.cosine_similarity(product.detach().flatten(), gradient.flatten(), dim=0))


def detached(part: Any) -> Any:
    if isinstance(part, torch.Tensor):
        return part.detach()
    return type(part)(*map(detached, part)) if isinstance(part, tuple) else part


class Reader:
    """Remembers what it is given to read; every token is as likely as any other."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.read: list[torch.Tensor] = []

    def __call__(self, ids_BL: torch.Tensor, state: None) -> models.Output:
        self.read.append(ids_BL)
        return models.Output(torch.zeros(*ids_BL.shape, self.vocabulary), None, [])


def test_general_text_is_held_out_prose_where_there_is_some(
    world: World, records: list[Record]
) -> None:
    stop = world.ids["."]
    prose = np.resize([10, 11, 12, stop], 8000)
    prose[7200:] = np.resize([20, 21, stop, stop], 800)  # the part for evaluation
    with_prose = World(world.tokens, world.groups, world.settings, world.filler.ids, prose)
    reader = Reader(len(world.tokens))
    nats = general_nll(reader, with_prose, records, None, 300, "cpu")
    assert nats == pytest.approx([np.log(len(world.tokens))] * len(records))
    assert [part.shape[1] for part in reader.read] == [256, 44]
    assert set(torch.cat(reader.read, 1).flatten().tolist()) == {20, 21, stop}
    plain = Reader(len(world.tokens))
    general_nll(plain, world, records, None, 40, "cpu")
    general_nll(plain, world, records[2:3], None, 40, "cpu")
    assert (plain.read[0][2] == plain.read[1][0]).all()
    words = world.groups["filler"]
    assert all(token == stop or token in words for token in plain.read[0].flatten().tolist())
    with pytest.raises(
        UserError, match="general_tokens: found 351; allowed with this dataset: up to 350"
    ):
        general_nll(plain, with_prose, records, None, 351, "cpu")
