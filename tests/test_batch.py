"""Jobs run from their request files: in which order, when not, and what a cut leaves behind."""

import fcntl
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from forgetmenot import manifest
from forgetmenot.batch import REQUESTS, Jobs
from forgetmenot.cli import batch
from forgetmenot.errors import UserError
from forgetmenot.files import write_json
from forgetmenot.report import pack

RUNS = "results/tiny/recall"
BASE, ARM, OTHER = (f"{RUNS}/{name}/seed0" for name in ("base", "arm", "other"))
DATA = "data/built/words"

# A job in a few milliseconds: does what its spec's `act` says, as a stage would.
FAKE = """
import json, pathlib, signal, sys, time
path = pathlib.Path(sys.argv[1]); request = json.loads(path.read_text())
with open("order.txt", "a") as order: order.write(request["out"] + "\\n")
act = request["spec"].get("act", "")
print("step 3/9", flush=True)
if act == "fail": sys.exit("error: no luck")
if act == "stubborn": signal.signal(signal.SIGTERM, signal.SIG_IGN)
if act in ("sleep", "stubborn"): time.sleep(60)
out = pathlib.Path(request["out"]); out.mkdir(parents=True, exist_ok=True)
inputs = {n: {"path": p, "id": json.loads(pathlib.Path(p, "manifest.json").read_text())["id"]}
          for n, p in request["inputs"].items()}
if act == "broken": outputs = {"gone.txt": {"sha256": "0", "bytes": 1}}
else: outputs = {}
record = {**request, "id": request["out"], "inputs": inputs, "outputs": outputs, "wall_seconds": 40}
(out / "manifest.json").write_text(json.dumps(record))
(out / "stamp.json").write_text("{}")
"""


def fake(stage: str, request: Path) -> list[str]:
    return [sys.executable, "-S", "-c", FAKE, str(request)]


def ask(stage: str, out: str, inputs: dict[str, str], **spec: Any) -> None:
    values = {
        "stage": stage, "name": out, "out": out, "work": f"work/runs/{out}", "inputs": inputs,
        "spec": spec, "seed": 0, "code": "c", "code_roots": [], "tags": {"study": "recall"},
    }  # fmt: skip
    write_json(REQUESTS / f"{out}.json", values)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base, an arm that starts from it, a model trained longer than each, their evaluations."""
    monkeypatch.chdir(tmp_path)
    ask("data", DATA, {})
    for run, steps, inputs in ((BASE, 3, {}), (ARM, 4, {"init": f"{BASE}/train"}), (OTHER, 6, {})):
        train = {"steps": steps, "tokens_per_step": 10}
        ask("train", f"{run}/train", {"words": DATA, **inputs}, train=train)
        ask("evaluate", f"{run}/task", {"model": f"{run}/train", "data": DATA}, task="task")


def run(*patterns: str, seconds: float = 20, width: int = 1, only: str | None = None) -> Any:
    made = batch.Batch(Jobs(patterns, only), width, seconds, fake)
    made.run()
    return made


def order() -> list[str]:
    return Path("order.txt").read_text().split()


def edit(out: str, **changes: Any) -> None:
    path = REQUESTS / f"{out}.json"
    write_json(path, {**json.loads(path.read_text()), **changes})


def test_what_is_trained_is_scored_next_and_the_longest_chain_comes_first() -> None:
    made = run("data", "results/tiny")
    runs = [f"{name}/{job}" for name in (BASE, OTHER, ARM) for job in ("train", "task")]
    assert order() == [DATA, *runs]
    assert batch.summary(made) == "7 of 7 done, 0 cut off, 0 waiting, 0 failed"
    assert "step 3/9" in Path(f"work/logs/{BASE}/train.log").read_text()
    assert Path("work/logs/data/words.log").exists()
    assert not run("results/tiny").failed
    assert len(order()) == 7


def test_jobs_of_other_options_code_or_inputs_are_not_done() -> None:
    run("data", "results")
    edit(f"{BASE}/train", code="another")
    assert not Jobs(["results"]).is_done(f"{BASE}/train")
    assert {out for out in Jobs(["results"]).asked if Jobs(["results"]).is_done(out)} == {
        f"{OTHER}/train",
        f"{OTHER}/task",
    }
    edit(f"{BASE}/train", code="c")
    edit(DATA, spec={"words": 2})
    assert not any(map(Jobs(["results"]).is_done, Jobs(["results"]).asked))
    edit(DATA, spec={})
    write_json(
        Path(DATA, "manifest.json"),
        {**json.loads(Path(DATA, "manifest.json").read_text()), "id": "x"},
    )
    assert not any(map(Jobs(["results"]).is_done, Jobs(["results"]).asked))


def test_what_cannot_start_says_why() -> None:
    assert set(map(run("results").reason, Jobs(["results"]).asked)) == {
        f"needs {DATA}, not asked for",
    }
    assert not Path("order.txt").exists()
    run("data", f"{BASE}/train")
    # As it arrives from another machine: without its large files.
    record = json.loads(Path(BASE, "train/manifest.json").read_text())
    write_json(Path(BASE, "train/manifest.json"), {**record, "outputs": {"w": {"sha256": "0"}}})
    write_json(Path(BASE, "train", manifest.ABSENT), {"w": {}})
    made = run(BASE, f"{ARM}/task")
    assert made.reason(f"{BASE}/task") == (
        f"needs {BASE}/train, whose large files are on another machine"
    )
    assert made.reason(f"{ARM}/task") == f"needs {ARM}/train, not asked for"
    assert "1 of 3 done, 0 cut off, 2 waiting, 0 failed" in batch.summary(made)


def test_a_failure_is_told_with_the_logs_last_line_and_stops_only_what_needs_it() -> None:
    train = {"steps": 3, "tokens_per_step": 10}
    edit(f"{BASE}/train", spec={"train": train, "act": "fail"})
    made = run("data", "results", width=2)
    assert made.failed == {f"{BASE}/train": "error: no luck (exit status 1)"}
    assert sorted(made.waiting) == [f"{ARM}/task", f"{ARM}/train", f"{BASE}/task"]
    assert Jobs(["results"]).is_done(f"{OTHER}/task")
    assert f"see work/logs/{BASE}/train.log" in batch.summary(made)


def test_the_end_of_the_time_stops_what_runs_and_the_next_batch_goes_on() -> None:
    edit(f"{OTHER}/train", spec={"act": "sleep"})
    edit(f"{OTHER}/task", spec={"task": "long"})
    run("data")
    made = run("results", width=2, seconds=1)
    assert made.cut_off == {f"{OTHER}/train": "step 3/9 (exit status -15)"}
    assert made.waiting == [f"{OTHER}/task"]
    edit(f"{OTHER}/train", spec={})
    assert not run("results").waiting


def test_results_are_packed_as_they_come(tmp_path: Path) -> None:
    archive = tmp_path / "out" / "results.tar.gz"
    ask("train", f"{OTHER}/train", {"words": DATA}, act="sleep")
    batch.Batch(Jobs(["data", BASE, OTHER]), 2, 1.5, fake, pack.Growing(archive)).run()
    assert pack.Growing(archive).folders == {DATA, f"{BASE}/train", f"{BASE}/task"}


def test_a_result_that_cannot_be_packed_fails_alone(tmp_path: Path) -> None:
    ask("train", f"{OTHER}/train", {"words": DATA}, act="broken")
    archive = pack.Growing(tmp_path / "results.tar.gz")
    made = batch.Batch(Jobs(["data", f"{BASE}/train", f"{OTHER}/train"]), 1, 20, fake, archive)
    made.run()
    assert "gone.txt" in made.failed.pop(f"{OTHER}/train")
    assert not made.failed
    assert archive.folders == {DATA, f"{BASE}/train"}


def test_what_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "GRACE_SECONDS", 0.3)
    edit(DATA, spec={"act": "stubborn"})
    assert run("data", seconds=1).cut_off == {DATA: "step 3/9 (exit status -9)"}


def test_an_evaluation_that_would_be_cut_off_waits_for_the_next_batch() -> None:
    run("data", BASE, f"{ARM}/train")
    made = batch.Batch(Jobs(["results"]), 1, 60, fake)
    made.end = time.monotonic() + 30  # the base's evaluation took 40 s
    made.run()
    assert made.waiting == [f"{ARM}/task", f"{OTHER}/task"]
    assert made.reason(f"{ARM}/task") == "can start, given time"
    # One that takes longer than any batch has nothing to wait for.
    assert not run("results", seconds=30).waiting


def test_a_job_that_another_command_runs_is_left_to_it() -> None:
    run("data")
    log = Path(f"work/logs/{OTHER}/train.log")
    log.parent.mkdir(parents=True)
    with log.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        made = run(f"{OTHER}/train", f"{BASE}/train")
    assert order() == [DATA, f"{BASE}/train"]
    assert made.reason(f"{OTHER}/train") == "another command runs it"


def test_jobs_are_chosen_by_folder_glob_file_and_stage() -> None:
    assert list(Jobs([f"{RUNS}/a*"]).asked) == [f"{ARM}/task", f"{ARM}/train"]
    assert list(Jobs([f"work/requests/{ARM}/task.json"]).asked) == [f"{ARM}/task"]
    assert list(Jobs(["results/"], "train").asked) == [f"{n}/train" for n in (BASE, OTHER, ARM)]
    # What the plan dropped stays in work/requests/, and is not run.
    ask("report", "reports/tiny", {"base": f"{BASE}/train", "base/task": f"{BASE}/task"})
    assert list(Jobs(["results"]).asked) == [f"{BASE}/task", f"{BASE}/train"]
    with pytest.raises(UserError, match=r"results/tin: found no job .* results/tiny/recall"):
        Jobs(["results/tin"])


def test_exit_status_and_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert batch.command(["results", "--dry-run"]) == batch.LEFT
    assert f"waiting  6: needs {DATA}, not asked for" in capsys.readouterr().out
    assert batch.command(["data", "--dry-run"]) == batch.LEFT
    assert f"{DATA}: can start, given time" in capsys.readouterr().out
    run("data", "results")
    assert batch.command(["data", "results", "--dry-run"]) == 0
    assert batch.command(["nothing"]) == batch.command(["data", "--jobs", "0"]) == 2
    Path(".snakemake/locks").mkdir(parents=True)
    Path(".snakemake/locks/0.input.lock").touch()
    assert batch.command(["data"]) == 2
    assert "snakemake runs in this folder" in capsys.readouterr().err
