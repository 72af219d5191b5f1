"""The stage runner: done once, verified, swapped in whole, and failures that lose nothing."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forgetmenot.code_hash import code_hash
from forgetmenot.errors import UserError
from forgetmenot.files import write_json
from forgetmenot.stage import Job, run_stage, stage

ROOTS = ["forgetmenot.errors"]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def request(name: str, inputs: dict[str, str] | None = None, **change: Any) -> Path:
    """Write the request of a job called `name` and return its path."""
    path = Path(f"{name}.json")
    values = {
        "stage": "data",
        "name": name,
        "out": f"out/{name}",
        "work": f"work/{name}",
        "inputs": inputs or {},
        "spec": {"text": "hello"},
        "seed": 0,
        "code": code_hash(*ROOTS),
        "code_roots": ROOTS,
        "tracking": None,
        "tags": {},
    }
    write_json(path, values | change)
    return path


class Main:
    """A stage that counts its runs and writes its spec's text."""

    def __init__(self, fails_with: Exception | None = None) -> None:
        self.runs = 0
        self.work: Path | None = None
        self.found: list[str] = []
        self.fails_with = fails_with

    def __call__(self, job: Job) -> None:
        """Write one file into out and one into work."""
        self.runs += 1
        self.work = job.work
        self.found = [path.name for path in job.work.iterdir()]
        (job.work / "checkpoint").write_text("half")
        (job.out / "text").write_text(job.spec["text"])
        if self.fails_with is not None:
            raise self.fails_with


def stamp(name: str) -> str:
    return str(json.loads(Path(f"out/{name}/stamp.json").read_text())["id"])


def test_a_job_leaves_outputs_manifest_and_stamp_and_no_rest() -> None:
    main = Main()
    run_stage(main, request("a"))
    assert sorted(path.name for path in Path("out/a").iterdir()) == [
        "manifest.json",
        "stamp.json",
        "text",
    ]
    assert [path.name for path in Path("out").iterdir()] == ["a"]
    assert not Path("work/a").exists()
    manifest = json.loads(Path("out/a/manifest.json").read_text())
    assert set(manifest["outputs"]) == {"text"}
    assert {"git", "versions", "platform", "device", "started", "finished"} <= set(manifest)


def test_a_done_job_is_recognised_and_its_stamp_renewed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = Main()
    run_stage(main, request("a"))
    before = stamp("a")
    Path("out/a/stamp.json").unlink()  # what Snakemake does before it runs a job
    run_stage(main, request("a", tracking={"uri": "http://127.0.0.1:1"}, tags={"x": 1}))
    assert main.runs == 1
    assert stamp("a") == before
    assert "recognised: a is already done" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"seed": 1}, {"spec": {"text": "other"}}])
def test_a_changed_request_runs_again(change: dict[str, Any]) -> None:
    main = Main()
    run_stage(main, request("a"))
    before = stamp("a")
    run_stage(main, request("a", **change))
    assert main.runs == 2
    assert stamp("a") != before


def test_an_equal_rebuild_has_the_same_stamp() -> None:
    run_stage(Main(), request("a"))
    before = stamp("a")
    Path("out/a/manifest.json").unlink()
    main = Main()
    run_stage(main, request("a"))
    assert (main.runs, stamp("a")) == (1, before)


def test_a_damaged_output_is_built_again() -> None:
    run_stage(Main(), request("a"))
    Path("out/a/text").write_text("hell")
    main = Main()
    run_stage(main, request("a"))
    assert main.runs == 1
    assert Path("out/a/text").read_text() == "hello"


def test_a_changed_input_runs_again_and_an_equal_one_does_not() -> None:
    main = Main()
    run_stage(Main(), request("a"))
    run_stage(main, request("b", {"a": "out/a"}))
    run_stage(main, request("b", {"a": "out/a"}))
    assert main.runs == 1
    run_stage(Main(), request("a", spec={"text": "other"}))
    run_stage(main, request("b", {"a": "out/a"}))
    assert main.runs == 2


def test_a_damaged_input_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    run_stage(Main(), request("a"))
    Path("out/a/text").write_text("hell")
    main = Main()
    with pytest.raises(SystemExit) as exit_:
        stage(main, ["--request", str(request("b", {"a": "out/a"}))])
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert main.runs == 0
    assert error.startswith("error: out/a/text: found sha256 ")
    assert len(error.splitlines()) == 1


def test_a_missing_input_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"out/a/manifest\.json: found no file"):
        run_stage(Main(), request("b", {"a": "out/a"}))


def test_code_that_changed_since_planning_is_refused() -> None:
    with pytest.raises(UserError, match="a: its code changed after this job was planned"):
        run_stage(Main(), request("a", code="stale"))


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (UserError("key: found 1; allowed: 2"), 2, "error: key: found 1; allowed: 2"),
        (OSError(errno.ENOSPC, "No space left on device"), 3, "no space left"),
        (OSError(errno.EFBIG, "File too large"), 3, "no space left"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 3, "no space left"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "package 'torch' is mis"),
    ],
)
def test_a_failure_is_one_line_and_loses_nothing(
    capsys: pytest.CaptureFixture[str], error: Exception, status: int, text: str
) -> None:
    run_stage(Main(), request("a"))
    before = Path("out/a/manifest.json").read_text()
    main = Main(error)
    with pytest.raises(SystemExit) as exit_:
        stage(main, ["--request", str(request("a", spec={"text": "other"}))])
    assert exit_.value.code == status
    err = capsys.readouterr().err
    assert text in err
    assert len(err.splitlines()) == 1
    assert Path("out/a/manifest.json").read_text() == before
    assert Path("out/a/text").read_text() == "hello"


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        stage(Main(ZeroDivisionError()), ["--request", str(request("a"))])


def test_work_survives_a_failure_and_belongs_to_one_request_and_its_inputs() -> None:
    run_stage(Main(), request("a"))
    failing, again, other = Main(RuntimeError()), Main(RuntimeError()), Main(RuntimeError())
    for main, seed in ((failing, 0), (again, 0), (other, 1)):
        with pytest.raises(RuntimeError):
            run_stage(main, request("b", {"a": "out/a"}, seed=seed))
    assert failing.found == []
    assert again.found == ["checkpoint"]
    assert other.found == []
    run_stage(Main(), request("a", spec={"text": "other"}))
    with pytest.raises(RuntimeError):
        run_stage(other, request("b", {"a": "out/a"}))
    assert other.found == []


def test_a_crash_between_the_two_renames_is_mended() -> None:
    run_stage(Main(), request("a"))
    Path("out/a").rename("out/a.old")
    Path("out/a").mkdir()  # what Snakemake does before it runs a job
    main = Main()
    run_stage(main, request("a"))
    assert main.runs == 0
    assert [path.name for path in Path("out").iterdir()] == ["a"]


def test_what_a_killed_job_left_is_replaced() -> None:
    Path("out/a.partial").mkdir(parents=True)
    Path("out/a.partial/rest").write_text("half")
    run_stage(Main(), request("a"))
    assert not Path("out/a/rest").exists()
    assert not Path("out/a.partial").exists()


def test_volatile_outputs_do_not_make_a_new_stamp() -> None:
    def main_with(text: str) -> Callable[[Job], None]:
        def main(job: Job) -> None:
            (job.out / "curve").write_text(text)
            job.volatile = ("curve",)

        return main

    run_stage(main_with("1 s"), request("a"))
    before = stamp("a")
    Path("out/a/manifest.json").unlink()
    run_stage(main_with("2 s"), request("a"))
    assert stamp("a") == before


@pytest.mark.parametrize("name", ["data", "train", "evaluate", "report", "tracking"])
def test_a_command_starts_without_heavy_imports(name: str) -> None:
    # A job that is already done must be recognised in no time.
    heavy = ("torch", "mlflow", "numpy", "transformers", "datasets", "matplotlib", "pydantic")
    code = (
        f"import sys, forgetmenot.cli.{name}\n"
        f"sys.exit(', '.join(set({heavy}) & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
