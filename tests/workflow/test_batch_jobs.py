"""Jobs run without Snakemake: taken as done by it, and its jobs by them."""

import shutil
import subprocess
import sys
from pathlib import Path

from micro_project import Project

# What a machine that is lent for minutes need not have.
NOT_THERE = ("datasets", "lm_eval", "mlflow", "pydantic", "snakemake")


def batch(project: Project, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `batch` with `NOT_THERE` missing, for it and for the jobs that it starts."""
    for name in NOT_THERE:
        module = folder / "missing" / f"{name}.py"
        module.parent.mkdir(exist_ok=True)
        module.write_text(f"raise ModuleNotFoundError('none', name={name!r})\n")
    environment = project.environment()
    environment["PYTHONPATH"] = f"{module.parent}:{environment['PYTHONPATH']}"
    return subprocess.run(
        [sys.executable, "-m", "forgetmenot.cli.batch", *arguments],
        cwd=project.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_batch_makes_is_done_for_snakemake_and_the_other_way_round(
    built: Project, tmp_path: Path
) -> None:
    project = built.clone(tmp_path / "project")
    done = batch(project, tmp_path, "results/micro", "data")
    assert (done.returncode, done.stdout) == (0, "15 of 15 done, 0 cut off, 0 waiting, 0 failed\n")

    shutil.rmtree(project.path("results/micro/recall/gdn"))
    done = batch(project, tmp_path, "results/micro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("start")] == [
        f"start    results/micro/recall/gdn/seed0/{job}" for job in ("train", "micro-recall")
    ]
    assert project.planned() == set()
