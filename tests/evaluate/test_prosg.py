"""The prompt-forgetting evaluator, proven with a look-up model and a small real one."""

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from forgetmenot import model as models
from forgetmenot.data import prosg_pf
from forgetmenot.data.prosg.evalset import read_records
from forgetmenot.data.prosg.world import World
from forgetmenot.errors import UserError
from forgetmenot.evaluate.prosg import Options, evaluate, measure
from forgetmenot.evaluate.prosg_controls import controlled_state
from forgetmenot.evaluate.results import Metric

SET = prosg_pf.Options(
    entities=64,
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
    modes=["neutral", "interfering", "self", "task"],
    facts=[8],
    dense_facts=[16],
    rules=3,
    personas=2,
    distances=[0, 32, 64, 300],
    long_distances=[0, 300],
    samples=64,
)
CELL = Options(distances=[0, 64], batch_size=16)
RULE_WORDS = {"start": 1, "starts": 1, "never": 2, "end": 3, "ends": 3, "give": 4, "given": 4}


class State(NamedTuple):
    """layers: one tensor int64 [B, P], all tokens read; update: the prompts, or None."""

    layers: tuple[torch.Tensor]
    update: torch.Tensor | None = None


class Output(NamedTuple):
    logits_BLV: torch.Tensor
    state: State


class Oracle:
    """Answers what the prompt said last; of what it was not told it makes a guess.

    memory: "state" = the prompt is in the recurrent state; "update" = in the update alone.
    span: tokens since `</prompt>` after which it has forgotten all.
    """

    def __init__(self, world: World, memory: str = "state", span: int = 10**9) -> None:
        self.world, self.memory, self.span = world, memory, span
        self.distances: set[int] = set()
        self.known: dict[bytes, dict[tuple[int, ...], int]] = {}

    def commit_prompt(self, state: State) -> State:
        return state._replace(update=state.layers[0]) if self.memory == "update" else state

    def __call__(
        self,
        ids_BL: torch.Tensor,
        state: State | None = None,
        *,
        mask_BL: torch.Tensor | None = None,
    ) -> Output:
        if mask_BL is not None:
            ids_BL = ids_BL.masked_fill(~mask_BL, self.world.pad)
        logits_BLV = torch.zeros(*ids_BL.shape, len(self.world.tokens))
        if state is None:
            return Output(logits_BLV, State((ids_BL,)))
        memory_BP = state.update if self.memory == "update" else state.layers[0]
        if memory_BP is None:
            memory_BP = torch.full((len(ids_BL), 1), self.world.close)
        for row, ids_L in enumerate(ids_BL.numpy()):
            read_P = state.layers[0][row].numpy()
            question = ids_L[ids_L != self.world.pad]
            if self.is_question(question):
                last_V = logits_BLV[row, len(question) - 1]
                read_P = read_P[read_P != self.world.pad]
                self.answer(last_V, question, read_P, memory_BP[row].numpy())
        return Output(logits_BLV, State((torch.cat([state.layers[0], ids_BL], 1),), state.update))

    def state_bytes(self, length: int) -> int:
        return 4 * length

    def is_question(self, words: np.ndarray) -> bool:
        is_trigger = len(words) == 1 and words[0] in self.world.groups["trigger"]
        return is_trigger or self.world.tokens[words[0]] in ("recall", "question")

    def answer(
        self, logits_V: torch.Tensor, question: np.ndarray, read_P: np.ndarray, memory_P: np.ndarray
    ) -> None:
        distance = len(read_P) - 1 - int(np.flatnonzero(read_P == self.world.close)[0])
        self.distances.add(distance)
        seed = zlib.crc32(question.tobytes() + read_P.tobytes())
        logits_V.copy_(torch.from_numpy(np.random.default_rng(seed).random(len(logits_V))))
        known, key = self.facts(memory_P), self.key(question)
        if key in known and distance <= self.span:
            logits_V[known[key]] = 2.0

    def key(self, words: np.ndarray) -> tuple[int, ...]:
        """What a sentence is about: its entity and relation, attribute, trigger or kind of rule."""
        groups = [self.world.groups[g] for g in ("entity", "relation", "attribute", "trigger")]
        found = sorted(int(w) for w in words if any(w in group for group in groups))
        rule = [RULE_WORDS[t] for t in (self.world.tokens[w] for w in words) if t in RULE_WORDS]
        return tuple(found) or (*rule, 0)[:1]

    def facts(self, prompt: np.ndarray) -> dict[tuple[int, ...], int]:
        """What a prompt says, by key; the last word on a key counts."""
        name = prompt.tobytes()
        if name not in self.known:
            told = self.known[name] = {}
            said = prompt[: np.flatnonzero(prompt == self.world.close)[0]]
            answers = ("value", "attribute_value", "code", "keyword")
            groups = [self.world.groups[group] for group in answers]
            for line in np.split(said, np.flatnonzero(said == self.world.stop) + 1):
                found = [int(w) for w in line if any(w in group for group in groups)]
                if found:
                    told[self.key(line)] = found[0]
                elif len(line):  # only a counter names an attribute and no value
                    told[(RULE_WORDS["give"],)] = self.key(line)[0]
        return self.known[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prosg_pf")
    prosg_pf.build(SET, {}, path)
    return path


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    return World.load(folder)


def select(metrics: list[Metric], name: str, **at: object) -> list[float]:
    """Values of a metric at the given axis values."""
    return [m["value"] for m in metrics if m["metric"] == name and at.items() <= m["at"].items()]


@pytest.mark.parametrize("split", SET.splits)
@pytest.mark.parametrize("mode", SET.modes)
def test_the_right_prompt_answers_everything(
    folder: Path, world: World, split: Any, mode: Any
) -> None:
    oracle = Oracle(world)
    options = Options(split=split, mode=mode, samples=16, controls=["none"])
    metrics, samples = measure(oracle, world, folder, options, "cpu")
    distances = SET.long_distances if split == "long" else SET.distances
    assert oracle.distances == set(distances)
    kinds = {m["at"]["kind"] for m in metrics if "kind" in m["at"]}
    assert len(kinds) == 8
    assert len(select(metrics, "accuracy")) == len(kinds) * len(distances)
    for name in ("accuracy", "greedy", "mrr", "capture", "retention", "aufc"):
        assert set(select(metrics, name)) == {1.0}
    assert set(select(metrics, "retention_given_capture")) == {1.0}
    assert select(metrics, "half_distance") == pytest.approx([300] * len(kinds))
    asked = [sample for sample in samples if "answer" in sample]
    assert all(sample["given"] == sample["answer"] for sample in asked)
    said = {m["at"]["question"]: m["value"] for m in metrics if m["metric"] == "said"}
    assert all(question.endswith(f"[{word}]") for question, word in said.items())
    assert len(said) == len(asked) // (16 * len(distances))


@pytest.mark.parametrize("control", ["wrong-prompt", "no-prompt"])
def test_the_wrong_prompt_and_none_are_at_chance(folder: Path, world: World, control: Any) -> None:
    options = replace(CELL, controls=[control], distances=[0, 32, 64, 300])
    _, samples = measure(Oracle(world), world, folder, options, "cpu")
    for name in ("accuracy", "greedy"):
        facts = [sample[name] for sample in samples if sample["at"]["kind"] == "fact"]
        chance = 1 / SET.values if name == "accuracy" else 1 / len(world.tokens)
        assert len(facts) == 64 * 4 * 4
        # A wrong prompt's answer repeats at the four distances, hence the factor 2.
        assert abs(np.mean(facts) - chance) < 4 * 2 * np.sqrt(chance / len(facts))


def test_a_wrong_update_hurts_only_what_is_kept_in_the_update(folder: Path, world: World) -> None:
    options = replace(CELL, controls=["none", "wrong-update", "no-prompt"])
    inside, _ = measure(Oracle(world, "update"), world, folder, options, "cpu")
    assert set(select(inside, "accuracy", control="none")) == {1.0}
    wrong = select(inside, "accuracy", control="wrong-update", kind="fact")
    assert len(wrong) == 2
    assert max(wrong) < 0.13
    assert select(inside, "specificity", kind="fact") == [1 - share for share in wrong]
    beside, _ = measure(Oracle(world, "state"), world, folder, options, "cpu")
    assert not select(beside, "accuracy", control="wrong-update")


def test_wrong_update_keeps_the_right_state(folder: Path, world: World) -> None:
    """With all knowledge in the state, another prompt's update changes nothing."""
    oracle = Oracle(world)
    oracle.commit_prompt = lambda state: state._replace(update=state.layers[0])  # type: ignore[method-assign]
    options = replace(CELL, controls=["wrong-update", "wrong-prompt"])
    metrics, _ = measure(oracle, world, folder, options, "cpu")
    assert set(select(metrics, "accuracy", control="wrong-update")) == {1.0}
    assert max(select(metrics, "accuracy", control="wrong-prompt", kind="fact")) < 0.13


def test_no_update_takes_the_update_away(folder: Path, world: World) -> None:
    records = read_records(folder, "iid", "neutral", 8)[:2]
    oracle = Oracle(world, "update")
    state = controlled_state("no-update", oracle, world, records, records, "cpu")
    right = controlled_state("none", oracle, world, records, records, "cpu")
    assert state is not None
    assert right is not None
    assert state.update is None
    assert right.update is not None
    assert (state.layers[0] == right.layers[0]).all()


def test_forgetting_shows_where_it_happens(folder: Path, world: World) -> None:
    options = Options(controls=["none"], batch_size=16)
    metrics, _ = measure(Oracle(world, span=64), world, folder, options, "cpu")
    kept = [select(metrics, "accuracy", kind="fact", distance=d)[0] for d in SET.distances]
    assert kept[:3] == [1.0, 1.0, 1.0]
    assert kept[3] < 0.13
    assert select(metrics, "capture", kind="fact") == [1.0]
    assert abs(select(metrics, "retention", kind="fact", distance=300)[0]) < 0.1
    assert select(metrics, "retention_given_capture", kind="fact", distance=300)[0] == kept[3]
    assert 64 < select(metrics, "half_distance", kind="fact")[0] < 300
    assert 0.3 < select(metrics, "aufc", kind="fact")[0] < 0.7
    assert not select(metrics, "retention", control="no-prompt")


def test_batches_do_not_matter(folder: Path, world: World) -> None:
    """Also a last batch of one prompt has another prompt as its wrong one."""
    results = [
        measure(Oracle(world), world, folder, replace(CELL, samples=9, batch_size=size), "cpu")
        for size in (1, 4, 9)
    ]
    assert results[0] == results[1] == results[2]


@pytest.fixture
def small(world: World, tmp_path: Path) -> Path:
    """A saved small recurrent model with random parameters."""
    layers = [["gdn", {"heads": 2, "key_dim": 8, "value_dim": 8}], ["swiglu", {"width": 32}]]
    spec = {"hidden": 16, "vocab": len(world.tokens), "layers": layers, "norm_eps": 1e-6}
    model = models.build(spec | {"tie_embeddings": True, "init_std": None, "prosg": None})
    model.init_parameters(0)
    models.save(model, tmp_path / "model")
    return tmp_path / "model"


def test_scores_are_those_of_one_plain_pass(folder: Path, world: World, small: Path) -> None:
    """Padding, chunks, copied states: the loss equals that of the whole text in a single pass."""
    model = models.load(small)
    records = read_records(folder, "iid", "interfering", 8)[:3]
    options = Options(samples=3, controls=["none"], batch_size=2)
    metrics, samples = measure(model, world, folder, options, "cpu")
    found = {(s["id"], s["at"]["distance"]): s["nll"] for s in samples if "nll" in s}
    nll = []
    for record in records:
        body = ""
        for distance, segment in zip(record.distances, ["", *record.body], strict=True):
            body = f"{body} {segment}"
            number = distance % len(record.probes)
            probe = record.probes[number]
            text = f"{record.prompt} {body} {probe.question}"
            with torch.inference_mode():
                logits_V = model(torch.from_numpy(world.encode(text))[None]).logits_BLV[0, -1]
            expected = float(-logits_V.log_softmax(0)[world.ids[probe.answer]])
            assert found[f"{record.id}-{number}", distance] == pytest.approx(expected, abs=1e-4)
        ids = torch.from_numpy(world.encode(f"{record.prompt} {body}"))[None]
        with torch.inference_mode():
            logits_LV = model(ids).logits_BLV[0].log_softmax(-1)
        start = ids.shape[1] - 300
        nll.append(-logits_LV[torch.arange(start, start + 299), ids[0, start + 1 :]].mean())
    # The first token of a pass is not scored, so the two differ by a few of 300 tokens.
    ppl = float(torch.stack(nll).mean().exp())
    assert select(metrics, "filler_ppl") == pytest.approx([ppl], rel=0.05)


def test_files_are_written(folder: Path, small: Path, tmp_path: Path) -> None:
    evaluate(small, folder, replace(CELL, samples=4), tmp_path / "out", "cpu")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["task"] == "prosg"
    controls = {m["at"]["control"] for m in results["metrics"] if "control" in m["at"]}
    assert controls == {"none", "wrong-prompt", "no-prompt"}
    assert results["about"]["body"] == "interfering"
    assert results["about"]["prompt of the example"].startswith("<prompt> ")
    options = replace(CELL, samples=2, controls=["none"], example=False)
    evaluate(small, folder, options, tmp_path / "plain", "cpu")
    plain = json.loads((tmp_path / "plain" / "results.json").read_text())
    assert plain["about"] == {"body": "interfering"}
    assert not select(plain["metrics"], "said")
    raw = [m for m in results["metrics"] if m["metric"] == "accuracy"]
    assert {tuple(sorted(m["at"])) for m in raw} == {("control", "distance", "facts", "kind")}
    assert all(m["n"] == 4 for m in raw if m["at"]["kind"] == "fact")
    lines = [json.loads(x) for x in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    probes = sum(len(r.probes) for r in read_records(folder, "iid", "interfering", 8)[:4])
    assert sum("nll" in line for line in lines) == probes * 2 * 3
    assert sum("general_nll" in line for line in lines) == 4


def test_bad_requests_are_refused(folder: Path, world: World, small: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such evaluation file"):
        measure(Oracle(world), world, folder, replace(CELL, facts=[9]), "cpu")
    with pytest.raises(UserError, match=r"distances: found \[0, 48\]"):
        measure(Oracle(world), world, folder, replace(CELL, distances=[0, 48]), "cpu")
    with pytest.raises(ValueError, match="distances: found"):
        Options(distances=[32, 64])
    for key in ("every", "ttt_rate", "ttt_rank", "ttt_clip", "refresh_share"):
        with pytest.raises(ValueError, match=f"{key}: found 0"):
            Options(**{key: 0})
    with pytest.raises(ValueError, match="general_tokens: found 1"):
        Options(general_tokens=1)
    other = replace(SET, keywords=17, samples=2, splits=["iid"], modes=["neutral"])
    prosg_pf.build(other, {}, tmp_path / "other")
    with pytest.raises(UserError, match="its vocabulary has"):
        evaluate(small, tmp_path / "other", Options(mode="neutral"), tmp_path, "cpu")
