"""What a manifest says about where a result came from: commit, versions, platform, device."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
# What decides results. Only those that the job has imported are recorded: asking costs no import.
LIBRARIES = (
    "accelerate",
    "datasets",
    "lm_eval",
    "matplotlib",
    "numpy",
    "pandas",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
)


def provenance() -> dict[str, Any]:
    """Return commit, dirty flag, versions, platform (no host name) and device of this process."""
    return {
        "git": git_state(),
        "versions": versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device_name(),
    }


def git_state() -> dict[str, Any] | None:
    """Return {"commit", "dirty"} of the checkout, or None outside a git repository."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain"))}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that this process has imported."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        if name in sys.modules:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "unknown"
    return found


def device_name() -> str:
    """Return the GPU's name where this process has used one, else "cpu"."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    return "cpu"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
