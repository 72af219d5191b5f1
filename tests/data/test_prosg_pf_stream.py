"""Training batches of ProSG-PF, and requests that a world cannot meet."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forgetmenot.data import prosg_pf
from forgetmenot.data.prosg.world import World
from forgetmenot.errors import UserError

SMALL = prosg_pf.Options(
    entities=32,
    relations=4,
    values=16,
    templates=4,
    attributes=4,
    filler_words=64,
    filler_classes=8,
    filler_tokens=20_000,
    facts=[4],
    splits=["iid"],
    distances=[0, 32],
    long_distances=[],
    dense_facts=[],
    rules=3,
    personas=2,
    triggers=16,
    samples=2,
)
STREAM = prosg_pf.StreamOptions(facts=[4, 8], distances=[0, 16, 32, 64], rules=3, personas=2)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prosg_pf")
    prosg_pf.build(SMALL, {}, folder)
    return folder


@pytest.fixture(scope="module")
def world(built: Path) -> World:
    return World.load(built)


def train_batches(folder: Path, count: int) -> list[dict[str, np.ndarray]]:
    stream = prosg_pf.Stream(folder, STREAM)
    keys = range(count)
    return [stream.batch(np.random.Generator(np.random.Philox(key=[0, k])), 2048) for k in keys]


def test_training_probes_ask_different_items_at_listed_distances(built: Path, world: World) -> None:
    for batch in train_batches(built, 5):
        ids, labels = batch["input_ids"], batch["labels"]
        assert batch["lm_labels"][:, :-1].tolist() == ids[:, 1:].tolist()
        assert (batch["lm_labels"][:, -1] == -100).all()
        rows, columns = np.nonzero(labels != -100)
        assert (labels[rows, columns] == ids[rows, columns + 1]).all()
        assert (ids[rows, columns + 2] == world.stop).all()
        for row in range(len(ids)):
            asked = []
            for column in columns[rows == row]:
                start = max(d for d in STREAM.distances if d <= column)
                question = world.text(ids[row, start : column + 1])
                assert "." not in question
                assert start == 0 or ids[row, start - 1] == world.stop
                first = question.split()[0]
                trigger = world.ids[first] in world.groups["trigger"]
                assert first in ("recall", "question") or trigger
                content = {w for w in question.split() if world.ids[w] >= world.ordinals[0]}
                asked.append(tuple(sorted(content)) if not trigger else first)
            assert len(asked) == min(4, sum(d < ids.shape[1] - 12 for d in STREAM.distances))


def test_prompts_are_left_padded_and_batches_a_function_of_the_generator(built: Path) -> None:
    first, second = train_batches(built, 2)
    again, _ = train_batches(built, 2)
    for name, array in first.items():
        assert array.dtype == (bool if name == "prompt_mask" else np.int64)
        assert (array == again[name]).all()
    assert first["input_ids"].shape != second["input_ids"].shape or (
        (first["input_ids"] != second["input_ids"]).any()
    )
    mask = first["prompt_mask"]
    assert mask.any(0).all()
    assert (np.sort(mask, axis=1) == mask).all()
    assert (first["prompt_ids"][~mask] == 0).all()


def test_batches_hold_about_the_asked_tokens(built: Path) -> None:
    sizes = [b["prompt_mask"].sum() + b["input_ids"].size for b in train_batches(built, 20)]
    assert 1700 < np.mean(sizes) < 2400


def test_too_small_worlds_are_refused(built: Path, tmp_path: Path) -> None:
    cases = [
        (replace(SMALL, facts=[64]), "facts: found 64, which needs 33 entities"),
        (replace(SMALL, personas=9), "personas: found 9, which needs 9 attributes"),
        (replace(SMALL, rules=17), "rules: found 17, which needs 17 triggers"),
        (replace(SMALL, filler_tokens=1000), "filler_tokens: found"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            prosg_pf.build(options, {}, tmp_path)
    with pytest.raises(UserError, match=r"distances: found \[0, 8\], allowed: at least"):
        prosg_pf.Stream(built, replace(STREAM, distances=[0, 8]))
    with pytest.raises(UserError, match="not a built ProSG-PF folder"):
        prosg_pf.Stream(tmp_path, STREAM)


@pytest.mark.parametrize(
    ("key", "value"),
    [("templates", 11), ("relations", 33), ("distances", [8, 16]), ("facts", []), ("values", 3)],
)
def test_bad_options_name_the_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{key}: found"):
        replace(SMALL, **{key: value})  # type: ignore[arg-type]
