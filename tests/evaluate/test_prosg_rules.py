"""The model's own text behind a prompt: body mode "self", and rule compliance by position."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from forgetmenot import model as models
from forgetmenot.data import prosg_pf
from forgetmenot.data.prosg.evalset import Record, read_records
from forgetmenot.data.prosg.templates import CUE
from forgetmenot.data.prosg.world import World
from forgetmenot.errors import UserError
from forgetmenot.evaluate.prosg_controls import controlled_state, prompt_state
from forgetmenot.evaluate.prosg_rollout import roll_out
from forgetmenot.evaluate.prosg_rules import Options, evaluate, measure
from forgetmenot.evaluate.prosg_writer import Writer

SET = prosg_pf.Options(
    entities=32,
    relations=4,
    values=16,
    templates=4,
    attributes=4,
    attribute_values=16,
    triggers=16,
    codes=16,
    keywords=16,
    filler_words=64,
    filler_classes=8,
    filler_tokens=20_000,
    splits=["iid"],
    modes=["self", "task"],
    facts=[4],
    dense_facts=[],
    rules=3,
    personas=1,
    distances=[0, 32, 96],
    long_distances=[],
    samples=8,
)


class State(NamedTuple):
    layers: tuple[torch.Tensor]
    update: None = None


class Output(NamedTuple):
    logits_BLV: torch.Tensor
    state: State


class Reciter:
    """Writes a given text behind each prompt, whatever the state: all tokens read, int64 [B, P]."""

    def __init__(self, world: World, texts: dict[str, str]) -> None:
        self.world = world
        self.next = {prompt: world.encode(text) for prompt, text in texts.items()}

    def commit_prompt(self, state: State) -> State:
        return state

    def __call__(
        self,
        ids_BL: torch.Tensor,
        state: State | None = None,
        *,
        mask_BL: torch.Tensor | None = None,
    ) -> Output:
        if mask_BL is not None:
            ids_BL = ids_BL.masked_fill(~mask_BL, self.world.pad)
        read_BP = ids_BL if state is None else torch.cat([state.layers[0], ids_BL], 1)
        logits_BLV = torch.zeros(*ids_BL.shape, len(self.world.tokens))
        for row, read_P in enumerate(read_BP.numpy()):
            end = int(np.flatnonzero(read_P == self.world.close)[0]) + 1
            prompt = self.world.text(read_P[:end][read_P[:end] != self.world.pad])
            text = self.next[prompt]
            place = len(read_P) - end
            if 0 < place < len(text):
                logits_BLV[row, -1, text[place]] = 30.0
            # What it may not write is what it would like best.
            for word in (self.world.pad, self.world.ids["recall"]):
                logits_BLV[row, -1, word] = 40.0
        return Output(logits_BLV, State((read_BP,)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prosg_pf")
    prosg_pf.build(SET, {}, path)
    return path


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    return World.load(folder)


@pytest.fixture(scope="module")
def model(world: World) -> models.LanguageModel:
    layers = [["gdn", {"heads": 2, "key_dim": 8, "value_dim": 8}], ["swiglu", {"width": 32}]]
    spec = {"hidden": 16, "vocab": len(world.tokens), "layers": layers, "norm_eps": 1e-6}
    built = models.build(spec | {"tie_embeddings": True, "init_std": None, "prosg": None})
    built.init_parameters(0)
    return built.eval()


def gold(records: list[Record]) -> dict[str, str]:
    return {record.prompt: "\n".join(record.body) for record in records}


def compliances(metrics: list[dict[str, Any]], control: str) -> dict[tuple[str, int], float]:
    return {
        (m["at"]["kind"], m["at"]["position"]): m["value"]
        for m in metrics
        if m["metric"] == "compliance" and m["at"]["control"] == control
    }


def test_gold_complies_everywhere_and_another_prompts_gold_does_not(
    folder: Path, world: World
) -> None:
    records = read_records(folder, "iid", "task", 4)
    options = Options(tokens=96, bin=32, batch_size=3, controls=["none"])
    right, samples, texts = measure(Reciter(world, gold(records)), world, folder, options, "cpu")
    assert set(compliances(right, "none").values()) == {1.0}
    assert {position for _, position in compliances(right, "none")} == {0, 32, 64}
    assert [t["text"] for t in texts] == ["\n".join(record.body) for record in records]
    assert all(sample["compliance"] == 1.0 for sample in samples)
    turned = zip(records, [*records[1:], records[0]], strict=True)
    others = [replace(record, body=other.body) for record, other in turned]
    _, samples, _ = measure(Reciter(world, gold(others)), world, folder, options, "cpu")
    broken = [s["compliance"] for s in samples if s["at"]["kind"] in ("prefix", "format")]
    assert len(broken) > 20
    assert np.mean(broken) < 0.2


def test_compliance_falls_where_the_model_stops_following(folder: Path, world: World) -> None:
    records = read_records(folder, "iid", "task", 4)
    half = {p: t[: t.index("\n", len(t) // 2)] + "\nthe the .\n" * 30
            for p, t in gold(records).items()}  # fmt: skip
    options = Options(tokens=96, bin=48, controls=["none"])
    metrics, _, _ = measure(Reciter(world, half), world, folder, options, "cpu")
    found = compliances(metrics, "none")
    kinds = {kind for kind, _ in found} & {"prefix", "format"}
    assert kinds
    slopes = {m["at"]["kind"]: m["value"] for m in metrics if m["metric"] == "compliance_slope"}
    for kind in kinds:
        assert found[kind, 48] < found[kind, 0]
        assert slopes[kind] < 0


def test_self_text_reaches_each_distance_and_is_scored(folder: Path, world: World) -> None:
    records = read_records(folder, "iid", "self", 4)
    reciter = Reciter(world, {r.prompt: f"{CUE} " + "the of is " * 40 for r in records})
    state = prompt_state(reciter, world, [record.prompt for record in records], "cpu")
    writer = Writer(reciter, world, records, state, 96, "cpu")
    writer.write(31)
    writer.stop()
    writer.write(63)
    writer.stop()
    words = writer.texts()[0].split()
    assert len(words) == 96
    assert " ".join(words[:6]) == f"{CUE} the of is"
    assert words[31] == words[95] == "."
    assert not {"recall", "<pad>"} & set(words)
    assert writer.scored == 96 - len(CUE.split()) - 2
    answers = roll_out(reciter, world, records, state, [0, 96], "cpu")
    assert answers.nll.shape == (len(records), len(records[0].probes), 2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_own_text_depends_on_the_record_alone(
    folder: Path, world: World, model: models.LanguageModel, temperature: float
) -> None:
    records = read_records(folder, "iid", "self", 4)[:4]

    def write(rows: list[Record]) -> tuple[list[str], np.ndarray]:
        with torch.inference_mode():
            state = controlled_state("none", model, world, rows, rows, "cpu")
            writer = Writer(model, world, rows, state, 40, "cpu", temperature)
            writer.write(40)
        return writer.texts(), writer.nll_B.numpy()

    together, nll = write(records)
    alone, _ = write(records[2:3])
    assert alone[0] == together[2]
    assert write(records)[0] == together
    assert len({text.removeprefix(CUE) for text in together}) > 1
    # The NLL is that of the text in one plain pass.
    ids = torch.from_numpy(world.encode(f"{records[0].prompt} {together[0]}"))[None]
    with torch.inference_mode():
        logs_LV = model(ids).logits_BLV[0].log_softmax(-1)
    places = torch.arange(ids.shape[1] - 37, ids.shape[1])
    assert nll[0] == pytest.approx(-float(logs_LV[places - 1, ids[0, places]].sum()), rel=1e-4)


def test_distances_of_self_do_not_depend_on_which_are_asked(
    folder: Path, world: World, model: models.LanguageModel
) -> None:
    records = read_records(folder, "iid", "self", 4)

    def answer(distances: list[int]) -> np.ndarray:
        with torch.inference_mode():
            state = controlled_state("none", model, world, records, records, "cpu")
            return roll_out(model, world, records, state, distances, "cpu").nll

    np.testing.assert_array_equal(answer([0, 32, 96])[..., 1], answer([0, 32])[..., 1])
    assert (answer([0, 96])[..., 0] != answer([0, 96])[..., 1]).any()


def test_files_and_requests(
    folder: Path, model: models.LanguageModel, world: World, tmp_path: Path
) -> None:
    models.save(model, tmp_path / "model")
    (tmp_path / "out").mkdir()
    options = Options(tokens=40, samples=3)
    evaluate(tmp_path / "model", folder, options, tmp_path / "out", "cpu")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {m["at"]["control"] for m in results["metrics"]} <= {"none", "wrong-prompt", "no-prompt"}
    texts = [json.loads(x) for x in (tmp_path / "out" / "texts.jsonl").read_text().splitlines()]
    assert len(texts) == 3 * 3
    assert all(len(text["text"].split()) == 40 for text in texts)
    # A text without an occasion is no compliance, but it is reported.
    occasions = [m for m in results["metrics"] if m["metric"] == "occasions"]
    kinds = {rule.kind for r in read_records(folder, "iid", "task", 4)[:3] for rule in r.rules}
    assert {m["at"]["kind"] for m in occasions} == kinds
    assert all(m["n"] == 3 for m in occasions)
    with pytest.raises(UserError, match="no such evaluation file"):
        measure(model, world, folder, replace(options, facts=[5]), "cpu")
    with pytest.raises(ValueError, match="temperature: found"):
        Options(temperature=-1.0)
