"""Bad input at the command line: one clear message, no traceback, nothing lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from micro_project import Project

TRAIN = "results/micro/recall/gdn/seed0/train"


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    return built.clone(tmp_path / "project")


def test_a_fault_in_the_configuration_stops_before_any_job(project: Project) -> None:
    project.edit("workflow/config/models/gdn_lte.yaml", "lte]", "ltee]")
    done = project.snakemake()
    assert done.returncode == 1
    assert "models/gdn_lte.yaml: pattern.1: found 'ltee'; allowed: ffn, gdn, lte" in done.stdout
    assert "Traceback" not in done.stdout
    assert "Job stats" not in done.stdout


def test_an_unknown_scale_lists_the_scales(project: Project) -> None:
    done = project.snakemake(config=["scale=smok"])
    assert done.returncode == 1
    assert "scale: found 'smok'; allowed: micro, paper, released, small, smoke" in done.stdout


def test_a_configuration_file_may_be_given(project: Project, tmp_path: Path) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("papers: [prosg]\ndevise: cpu\n")
    done = project.snakemake("--configfile", str(overlay))
    assert done.returncode == 1
    assert "devise: unknown key; allowed: scale, papers" in done.stdout
    overlay.write_text("papers: [prosg]\nseeds: [5]\n")
    assert "train micro/prompts/rwkv4/seed5" in project.planned("--configfile", str(overlay))


def test_a_damaged_dataset_is_refused_by_name_and_results_stay(project: Project) -> None:
    damaged = next(project.path("data/built/micro-mqar").rglob("*.safetensors"), None) or next(
        path
        for path in project.path("data/built/micro-mqar").rglob("*")
        if path.is_file() and path.name not in ("meta.json", "manifest.json", "stamp.json")
    )
    damaged.write_bytes(damaged.read_bytes()[:-1])
    before = project.path(f"{TRAIN}/manifest.json").read_text()
    project.edit(
        "workflow/config/scales/micro.yaml",
        "variants: [gdn, gdn_lte]",
        "train_overrides: {gdn: {steps: 3}}\n    variants: [gdn, gdn_lte]",
    )
    done = project.snakemake(f"{TRAIN}/stamp.json")
    relative = damaged.relative_to(project.folder)
    assert done.returncode == 1
    assert f"error: {relative}: found sha256 " in done.stdout
    assert "Traceback" not in done.stdout
    assert project.path(f"{TRAIN}/manifest.json").read_text() == before


def test_a_missing_package_is_one_line_with_the_command(project: Project, tmp_path: Path) -> None:
    # What Python sees of a package that is not installed.
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(
        "import sys\nsys.modules['torch'] = None\n"
    )
    environment = project.environment()
    environment["PYTHONPATH"] += f"{os.pathsep}{tmp_path / 'without'}"
    done = subprocess.run(
        project.command(), cwd=project.folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    message = f"{sys.executable} lacks torch; install with: {sys.executable} -m pip install -e ."
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_run_is_told_of_the_first_and_harms_nothing(project: Project) -> None:
    project.edit(
        "workflow/config/scales/micro.yaml",
        "variants: [gdn, gdn_lte]",
        "train_overrides: {gdn: {steps: 1000000}}\n    variants: [gdn, gdn_lte]",
    )
    before = {path: path.read_text() for path in project.folder.rglob("manifest.json")}
    target = f"{TRAIN}/stamp.json"
    # Left by the run that built the project: gone, so that its return means that the job runs.
    running = project.path("work/runs/micro/recall/gdn/seed0")
    shutil.rmtree(running, ignore_errors=True)
    first = subprocess.Popen(
        project.command(target), cwd=project.folder, env=project.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        # where these tests are a background job, SIGINT is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        wait_for(running, first)
        second = project.snakemake(target)
        assert second.returncode == 1
        assert "Directory cannot be locked" in second.stdout
        assert "Traceback" not in second.stdout
        assert first.poll() is None
    finally:
        os.killpg(first.pid, signal.SIGINT)
        try:
            first.wait(timeout=60)
        finally:
            if first.poll() is None:
                os.killpg(first.pid, signal.SIGKILL)
    assert {path: path.read_text() for path in before} == before
    assert project.planned(target) == {"train micro/recall/gdn/seed0"}


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a path exists, as long as the process that makes it lives."""
    while not path.exists():
        assert process.poll() is None, "the first run ended early"
        time.sleep(0.1)
