"""The micro project, built once for all tests of the workflow."""

import fcntl
from pathlib import Path

import pytest
from micro_project import Project, make_project


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Project:
    """The project after one whole run. Tests that change it use `clone`."""
    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent  # of all workers: the first one builds for the others
    with (shared / "built.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = shared / "built.done"
        if not done.exists():
            build(shared / "built")
            done.touch()
    return Project(shared / "built")


def build(folder: Path) -> None:
    """Make the project and run it whole."""
    run = make_project(folder).snakemake()
    assert run.returncode == 0, run.stdout
