"""A copy of the project with a micro scale, and how to run Snakemake in it."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MICRO = Path(__file__).resolve().parent / "micro"


@dataclass(frozen=True)
class Project:
    """A copy of the project, and how to run Snakemake in it."""

    folder: Path

    def snakemake(
        self, *arguments: str, config: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run Snakemake as a user would, at the micro scale; stdout and stderr come together."""
        return subprocess.run(
            self.command(*arguments, config=config),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )

    def command(self, *arguments: str, config: Sequence[str] = ()) -> list[str]:
        """Return the command line of a run at the micro scale, with further `--config` values."""
        values = ["--config", "scale=micro", *config]
        return [sys.executable, "-m", "snakemake", *arguments, *values]

    def environment(self) -> dict[str, str]:
        """The environment with the copy's packages in front of any installed ones."""
        paths = f"{self.folder / 'src'}{os.pathsep}{self.folder / 'kernels'}"
        return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}

    def planned(self, *arguments: str, config: Sequence[str] = ()) -> set[str]:
        """Return the messages of the jobs that a dry run lists, such as "data micro-mqar"."""
        done = self.snakemake("--dry-run", *arguments, config=config)
        assert done.returncode == 0, done.stdout
        return set(re.findall(r"^Job \d+: (.+)$", done.stdout, flags=re.MULTILINE))

    def path(self, relative: str) -> Path:
        """Return a file of the copy."""
        return self.folder / relative

    def edit(self, relative: str, old: str, new: str) -> None:
        """Replace a text that stands in a file exactly once."""
        text = self.path(relative).read_text()
        assert text.count(old) == 1, (relative, old)
        self.path(relative).write_text(text.replace(old, new))

    def clone(self, folder: Path) -> "Project":
        """Return a copy with its results and file times, to spoil at will."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder)


def make_project(folder: Path) -> Project:
    """Return a copy of the sources, not built yet, with the micro scale and its text."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "kernels", "workflow", "profiles"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy2(ROOT / "Snakefile", folder)
    shutil.copytree(MICRO, folder / "workflow" / "config", dirs_exist_ok=True)
    words = [a + b for a in ("ba", "ce", "di", "fo", "gu") for b in ("rin", "tal", "mos", "ped")]
    draw = random.Random(0)
    lines = [
        json.dumps({"id": str(n), "text": " ".join(draw.choices(words, k=60)) + "."})
        for n in range(40)
    ]
    (folder / "mirror").mkdir()
    (folder / "mirror" / "documents.jsonl").write_text("\n".join(lines) + "\n")
    return Project(folder)
