"""Results that come as small files: taken as done, reported on and published by Snakemake."""

import shutil
import subprocess
import sys
from pathlib import Path

from micro_project import Project


def command(project: Project, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "forgetmenot.cli.report", *arguments],
        cwd=project.folder,
        env=project.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_project_without_weights_and_data_reports_and_publishes(
    built: Project, tmp_path: Path
) -> None:
    archive = str(tmp_path / "small.tar.gz")
    packed = command(built, "pack", archive, "--scale", "micro")
    here = built.clone(tmp_path / "here")
    for name in ("data", "results", "reports", "work", "mlflow", ".snakemake"):
        shutil.rmtree(here.path(name))
    jobs = packed.split(": ")[1].split()[0]
    assert f"{jobs} results added, 0 were there already" in command(here, "unpack", archive)

    run = here.snakemake()
    assert run.returncode == 0, run.stdout
    logs = [path.read_text() for path in here.path("work/logs").rglob("*.log")]
    # All but the report and the tracking store were there.
    assert sum("recognised" in text for text in logs) == int(jobs) == len(logs) - 2
    assert not list(here.path("results").rglob("*.safetensors"))
    report = here.path("reports/micro/tables/micro.md").read_text()
    assert report == built.path("reports/micro/tables/micro.md").read_text()

    command(here, "publish", "--scale", "micro")
    page = here.path("reports/published/micro/index.html")
    first = page.read_bytes()
    page.unlink()
    run = here.snakemake("published")
    assert run.returncode == 0, run.stdout
    assert page.read_bytes() == first
