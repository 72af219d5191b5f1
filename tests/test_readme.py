"""The README's commands are those that are checked, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "data/README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_ci_runs_the_readmes_test_line() -> None:
    readme = (ROOT / "README.md").read_text()
    (line,) = re.findall(r"^python3 -m venv .*pytest$", readme, re.MULTILINE)
    install, command = line.split(" && ")[2:]
    ci = (ROOT / ".ci/run").read_text()
    assert install in ci
    assert re.search(rf"^{command}$", ci, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:src|kernels|tests|workflow|docs)/[\w./-]+\.\w+)`", text)
    for target in [*(page.parent / link for link in links), *(ROOT / name for name in named)]:
        assert target.exists(), target
