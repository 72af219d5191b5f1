"""A copy of the project with a micro scale, and how to run Snakemake in it."""

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MICRO = Path(__file__).resolve().parent / "micro"


@dataclass(frozen=True)
class Project:
    """A copy of the project, and how to run Snakemake in it."""

    folder: Path

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Snakemake as a user would, at the micro scale; stdout and stderr come together."""
        command = [sys.executable, "-m", "snakemake", "--config", "scale=micro", *arguments]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )

    def environment(self) -> dict[str, str]:
        """The environment with the copy's packages in front of any installed ones."""
        paths = f"{self.folder / 'src'}{os.pathsep}{self.folder / 'kernels'}"
        return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}

    def planned(self, *arguments: str) -> set[str]:
        """Return the stamps that a dry run would make, less "/stamp.json"."""
        done = self.snakemake("-n", "--quiet", "host", *arguments)
        assert done.returncode == 0, done.stdout
        outputs = [line.split()[-1] for line in done.stdout.splitlines() if "output: " in line]
        return {output.removesuffix("/stamp.json") for output in outputs}

    def path(self, relative: str) -> Path:
        """Return a file of the copy."""
        return self.folder / relative

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
