"""Cost of a prompt: what is timed, what is counted, what rows say; never how long it takes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from prosg_small import SET, make

from forgetmenot import model as models
from forgetmenot.data import prosg_pf
from forgetmenot.data.prosg.evalset import read_records
from forgetmenot.data.prosg.world import World
from forgetmenot.evaluate.prosg_cost import Options, evaluate

OPTIONS = Options(batches=[1, 2], repeats=2, blocks=2, steps=3)


@pytest.mark.parametrize("with_update", [True, False])
def test_rows_say_what_was_timed_and_on_what(tmp_path: Path, with_update: bool) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    out.mkdir()
    prosg_pf.build(replace(SET, modes=["interfering"], samples=2), {}, data)
    world = World.load(data)
    model = make(world, "rwkv4", {"generator": "g1", "width": 8} if with_update else None)
    models.save(model, tmp_path / "model")
    evaluate(tmp_path / "model", data, OPTIONS, out, "cpu")
    metrics = json.loads((out / "results.json").read_text())["metrics"]
    timed = {"prefill_ms", "commit_ms", "decode_ms"}
    for batch in (1, 2):
        row = {m["metric"]: m for m in metrics if m["at"] == {"facts": 4, "batch": batch}}
        merged = {"merged_decode_ms"} if with_update and batch == 1 else set()
        texts = {"device", "versions", "dtype"}
        assert set(row) == timed | merged | texts | {"prompt_tokens", "session_floats"}
        assert all(row[name]["value"] > 0 and row[name]["n"] == 2 for name in timed | merged)
        state = 5 * 2 * 16
        update = 2 * 2 * 4 * (16 + 32) if with_update else 0
        assert row["session_floats"]["value"] == state + update
        lengths = [len(r.prompt.split()) for r in read_records(data, "iid", "interfering", 4)]
        assert row["prompt_tokens"]["value"] == max(lengths[:batch])
        assert row["dtype"]["value"] == "float32"
        assert row["device"]["value"]
        assert "torch" in row["versions"]["value"]
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 2 * 3 + 2 * with_update


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(ValueError, match="steps: found 0"):
        replace(OPTIONS, steps=0)
    with pytest.raises(ValueError, match=r"batches: found \[\]"):
        replace(OPTIONS, batches=[])
