"""Tracking: a view that never stops a job and can be rebuilt from the results."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forgetmenot.files import write_json, write_text
from forgetmenot.tracking import describe, run, store
from forgetmenot.tracking.rebuild import rebuild

EXPERIMENT = "forgetmenot/smoke/lte"
SOURCES = Path(__file__).parents[1] / "src"


def request(name: str, uri: str | None = None, code: str = "c0de") -> dict[str, Any]:
    key = f"results/{name}"
    return {
        "stage": "train",
        "name": name,
        "out": key,
        "inputs": {},
        "spec": {"train": {"steps": 3, "betas": [0.9, 0.95]}, "text": "x" * 900},
        "seed": 1,
        "code": code,
        "tracking": {"uri": uri, "experiment": EXPERIMENT},
        "tags": {"scale": "smoke", "study": "recall"},
    }


def finish(values: dict[str, Any]) -> Path:
    """Write the output folder of a finished job."""
    folder = Path(values["out"])
    lines = [{"step": s, "tokens": s, "seconds": s / 2, "loss": 3.0 - s} for s in (1, 2)]
    write_text(folder / "curve.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    entry = {"metric": "accuracy", "at": {"pairs": 4}, "value": 0.75, "stderr": 0.1, "n": 9}
    write_json(folder / "results.json", {"task": "recall", "metrics": [entry]})
    result = {
        "id": f"id of {values['name']}",
        "wall_seconds": 1.5,
        "git": {"commit": "abc", "dirty": False},
        "started": "2026-01-01T10:00:00+00:00",
        "finished": "2026-01-01T10:00:02+00:00",
    }
    write_json(folder / "manifest.json", {**values, **result})
    return folder


def job(values: dict[str, Any]) -> None:
    with run(values) as handle:
        for step in (1, 2):
            handle.log({"tokens": step, "seconds": step / 2, "loss": 3.0 - step}, step)
        handle.finish(finish(values))


def shown(uri: str | None = None) -> dict[str, Any]:
    """What the store shows of each run: status, params, last metrics and tags, and the curve."""
    client = store.connect(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    found = {}
    for entry in client.search_runs([experiment.experiment_id]):
        losses = client.get_metric_history(entry.info.run_id, "loss")
        tags = {key: value for key, value in entry.data.tags.items() if key != "mlflow.user"}
        found[entry.info.run_name] = (
            entry.info.status,
            entry.data.params,
            entry.data.metrics,
            tags,
            [(metric.step, metric.value) for metric in losses],
        )
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose store two processes, started together on no store at all, have filled."""
    folder = tmp_path_factory.mktemp("project")
    before = Path.cwd()
    os.chdir(folder)
    program = "import sys; sys.path.insert(0, sys.argv[1]); import test_tracking as t; "
    program += "t.job(t.request(sys.argv[2]))"
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(Path(__file__).parent), f"smoke/{name}"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCES)},
        )
        for name in ("a", "b")
    ]
    errors = [process.communicate(timeout=120)[1] for process in jobs]
    assert [process.returncode for process in jobs] == [0, 0], errors
    assert not any("warning: tracking" in error for error in errors), errors
    yield folder
    os.chdir(before)


def test_parallel_jobs_on_a_fresh_store_are_all_there(project: Path) -> None:
    runs = shown()
    assert set(runs) == {"smoke/a", "smoke/b"}
    status, params, metrics, tags, curve = runs["smoke/a"]
    assert status == "FINISHED"
    assert params["train.steps"] == "3"
    assert params["train.betas"] == "[0.9, 0.95]"
    assert len(params["text"]) == describe.MAX_TEXT
    assert metrics["accuracy/pairs_4"] == 0.75
    assert curve == [(1, 2.0), (2, 1.0)]
    expected = {"scale": "smoke", "stage": "train", "seed": "1", "git_commit": "abc"}
    assert expected.items() <= tags.items()
    assert tags["forgetmenot.job"] == "smoke/a"
    artifacts = list((project / "mlflow" / "artifacts").rglob("manifest.json"))
    assert len(artifacts) == 2


def test_rebuild_gives_the_same_runs_and_repeating_it_adds_none(project: Path) -> None:
    live = shown()
    assert rebuild("smoke", None) == (0, 2, [])
    other = f"sqlite:///{project / 'other.db'}"
    assert rebuild(None, other) == (2, 0, [])
    assert shown(other) == live
    assert rebuild(None, other) == (0, 2, [])
    broken = project / "results" / "smoke" / "broken" / "manifest.json"
    write_text(broken, "{")
    try:
        assert [str(broken.relative_to(project)) in line for line in rebuild(None, other)[2]] == [
            True
        ]
    finally:
        broken.unlink()


def test_a_killed_job_continues_its_run_and_other_code_closes_it(project: Path) -> None:
    from forgetmenot.tracking.writer import open_live

    first = open_live(request("smoke/killed"))
    assert open_live(request("smoke/killed")).run_id == first.run_id
    other = open_live(request("smoke/killed", code="new"))
    assert other.run_id != first.run_id
    assert other.client.get_run(first.run_id).info.status == "KILLED"
    for writer in (first, other):
        writer.client.delete_run(writer.run_id)


def test_a_failing_job_ends_its_run_as_failed_and_keeps_its_error(project: Path) -> None:
    def fail() -> None:
        with run(request("smoke/failing")) as handle:
            handle.log({"loss": float("nan")}, 1)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    status, _, metrics, tags, _ = shown()["smoke/failing"]
    assert (status, tags["error"]) == ("FAILED", "RuntimeError: boom")
    assert metrics == {}


def test_a_server_that_does_not_answer_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        values = request("smoke/unreachable", uri=f"http://127.0.0.1:{closed.getsockname()[1]}")
    job(values)
    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning:" in line]
    (line,) = [text for text in warnings if "tracking of smoke/unreachable" in text]
    assert "the job goes on" in line
    assert "forgetmenot.cli.tracking rebuild" in line


def test_a_request_without_tracking_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with run({**request("smoke/quiet"), "tracking": None}) as handle:
        handle.log({"loss": 1.0}, 1)
        handle.log_artifact(tmp_path / "no such file")
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_is_copied_when_it_is_logged(project: Path) -> None:
    file = project / "page.html"
    file.write_text("<p>hello</p>")
    values = request("smoke/artifact")
    with run(values) as handle:
        handle.log_artifact(file)
        file.unlink()
        handle.finish(finish(values))
    (kept,) = (project / "mlflow" / "artifacts").rglob("page.html")
    assert kept.read_text() == "<p>hello</p>"


def test_metric_names_are_ones_that_mlflow_accepts() -> None:
    found = describe.scalars({"step": 3, "kept": [[1, 2.5]], "a=b": 1, "text": "x", "bad": 1e999})
    assert found == {"kept/0/0": 1.0, "kept/0/1": 2.5, "a_b": 1.0}
