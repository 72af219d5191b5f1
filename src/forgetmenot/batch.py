"""Jobs from their request files alone: which are done, and what is in the way of the others."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from forgetmenot import manifest
from forgetmenot.errors import UserError

REQUESTS = Path("work/requests")
STAGES = ("data", "fetch", "train", "evaluate")
Requests = dict[str, dict[str, Any]]
"""Requests by output folder."""


class Jobs:
    """The jobs asked for: evaluations first, then those with the longest chain behind them.

    Weights may be gone with the machine, so whatever is trained is to be scored before more is
    trained.

    `patterns` are output folders, folders above them, or globs of them; `only` is a stage. Raises
    UserError for a pattern without a job.
    """

    def __init__(self, patterns: Sequence[str], only: str | None = None) -> None:
        self._records: dict[str, dict[str, Any] | None] = {}
        planned = _planned()
        chosen = {out for pattern in patterns for out in _matching(pattern, planned)}
        asked = {out: planned[out] for out in chosen if only in (None, planned[out]["stage"])}
        order = sorted(
            asked, key=lambda o: (asked[o]["stage"] != "evaluate", -_tokens(o, asked), o)
        )
        self.asked: Requests = {out: asked[out] for out in order}

    def is_done(self, out: str) -> bool:
        """Whether a folder has the result that its request, if there is one, asks for."""
        return self._record(out) is not None

    def look_again(self) -> None:
        """Forget which results were missing: for when a job has ended."""
        self._records = {out: record for out, record in self._records.items() if record}

    def obstacle(self, out: str) -> str | None:
        """What keeps the job from starting now, or None."""
        inputs = self.asked[out]["inputs"].values()
        for folder in sorted(
            inputs, key=self.asked.__contains__
        ):  # what waiting will not mend first
            if not self.is_done(folder):
                return f"needs {folder}" + ("" if folder in self.asked else ", not asked for")
            if any(not Path(folder, name).exists() for name in manifest.absent(Path(folder))):
                return f"needs {folder}, whose large files are on another machine"
        return None

    def seconds(self, out: str) -> float:
        """The longest that an evaluation on the same task took here; 0 if unknown.

        0 for other jobs too: a training goes on where it was cut off, an evaluation starts anew.
        """
        if self.asked[out]["stage"] != "evaluate":
            return 0.0
        task = _task(self.asked[out])
        records = (self._record(out) for out in self.asked if _task(self.asked[out]) == task)
        return max((record["wall_seconds"] for record in records if record), default=0.0)

    def _record(self, out: str) -> dict[str, Any] | None:
        if out not in self._records:
            self._records[out] = self._find(out)
        return self._records[out]

    def _find(self, out: str) -> dict[str, Any] | None:
        """The manifest of a result, unless it is not there or not what is asked for now."""
        if not Path(out, manifest.STAMP).exists():
            return None
        try:
            found = manifest.read_object(Path(out, manifest.MANIFEST), "a manifest")
        except UserError:
            return None  # made anew, or named by the job that needs it
        folders = {name: entry["path"] for name, entry in found["inputs"].items()}
        path = REQUESTS / f"{out}.json"
        if path.exists():
            request = manifest.load_request(path)
            if manifest.identity(request) != manifest.identity(found):
                return None
            folders = request["inputs"]
        for name, folder in folders.items():
            record = self._record(folder)
            if record is None or record["id"] != found["inputs"][name]["id"]:
                return None
        return found


def _planned() -> Requests:
    """All requests, without those of results that their scale's report no longer asks for."""
    requests = [manifest.load_request(path) for path in sorted(REQUESTS.rglob("*.json"))]
    reports = {r["out"]: set(r["inputs"].values()) for r in requests if r["stage"] == "report"}

    def is_wanted(out: str) -> bool:
        root, scale = Path(out).parts[:2]
        return root != "results" or out in reports.get(f"reports/{scale}", {out})

    return {r["out"]: r for r in requests if r["stage"] in STAGES and is_wanted(r["out"])}


def _matching(pattern: str, planned: Requests) -> list[str]:
    name = pattern.removeprefix(f"{REQUESTS.as_posix()}/").removesuffix(".json").rstrip("/")
    found = [out for out in planned if fnmatchcase(out, name) or fnmatchcase(out, f"{name}/*")]
    if not found:
        there = sorted({"/".join(Path(out).parts[:3]) for out in planned})
        raise UserError(
            f"{pattern}: found no job of that name in {REQUESTS} (written by `snakemake -n`); "
            f"there are: {', '.join(there) or 'none'}"
        )
    return found


def _tokens(out: str, asked: Requests) -> int:
    """Tokens that a job and the longest chain of jobs behind it train on."""
    train = asked[out]["spec"].get("train", {})
    own = int(train.get("steps", 0) * train.get("tokens_per_step", 0))
    behind = [other for other, request in asked.items() if out in request["inputs"].values()]
    return own + max((_tokens(other, asked) for other in behind), default=0)


def _task(request: dict[str, Any]) -> tuple[Any, Any]:
    return request["tags"].get("study"), request["spec"].get("task")
