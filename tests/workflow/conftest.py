"""The micro project, built once for all tests of the workflow."""

import pytest
from micro_project import Project, make_project


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after one whole run. Tests that change it use `clone`."""
    project = make_project(tmp_path_factory.mktemp("workflow") / "project")
    done = project.snakemake()
    assert done.returncode == 0, done.stdout
    return project
