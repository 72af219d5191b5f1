"""Run jobs from their request files, some at a time and for some minutes, without Snakemake.

python -m forgetmenot.cli.batch results/small/recall --jobs 8 --minutes 9
"""

import argparse
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from forgetmenot.batch import REQUESTS, STAGES, Jobs
from forgetmenot.errors import UserError
from forgetmenot.report import pack
from forgetmenot.stage import BAD_INPUT

FAILED = 1
LEFT = 3
GRACE_SECONDS = 30.0  # between asking jobs to stop and killing them


def stage_command(stage: str, request: Path) -> list[str]:
    """The command line of a job, as the workflow's rules have it."""
    return [sys.executable, "-m", f"forgetmenot.cli.{stage}", "--request", str(request)]


def log_file(out: str) -> Path:
    """The log of a job, where the workflow's rules have it."""
    return Path("work/logs", f"{out.replace('data/built/', 'data/')}.log")


class Batch:
    """Runs each job once its inputs are done, at most `width` at once, and for `seconds`.

    Each result is added to `archive`, if there is one, as soon as it is there.
    What ran is in `failed` and `cut_off`, with the last line of its log; `waiting` did not run.
    """

    def __init__(
        self,
        jobs: Jobs,
        width: int,
        seconds: float,
        command: Callable[[str, Path], list[str]] = stage_command,
        archive: pack.Growing | None = None,
    ) -> None:
        self.jobs, self.width, self.seconds, self.command = jobs, width, seconds, command
        self.archive = archive
        self.end = time.monotonic() + seconds
        self.waiting = [out for out in jobs.asked if not jobs.is_done(out)]
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.failed: dict[str, str] = {}
        self.cut_off: dict[str, str] = {}
        self.taken: set[str] = set()

    def stop(self, *_: object) -> None:
        """Have `run` end as if the time were over. Takes what a signal handler is given."""
        self.end = time.monotonic()

    def run(self) -> None:
        """Run until nothing more can start or the time is over; leaves no job running."""
        while time.monotonic() < self.end:
            self._start()
            if not self.running:
                return
            time.sleep(0.1)
            self._collect(self.failed)
        for process in self.running.values():
            process.terminate()
        kill = time.monotonic() + GRACE_SECONDS
        while self.running and time.monotonic() < kill:
            time.sleep(0.1)
            self._collect(self.cut_off)
        for process in self.running.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._collect(self.cut_off)

    def reason(self, out: str) -> str:
        """Why a waiting job was not started."""
        if out in self.taken:
            return "another command runs it"
        return self.jobs.obstacle(out) or "can start, given time"

    def _start(self) -> None:
        for out in list(self.waiting):
            if len(self.running) == self.width:
                return
            if self.jobs.is_done(out):  # its input was made again, with the same outcome
                self.waiting.remove(out)
            elif self.jobs.obstacle(out) is None and self._has_time(out):
                self._launch(out)

    def _has_time(self, out: str) -> bool:
        """Not for an evaluation that would be cut off now and would not be in another batch."""
        expected = self.jobs.seconds(out)
        return expected < self.end - time.monotonic() or expected > self.seconds

    def _launch(self, out: str) -> None:
        log_file(out).parent.mkdir(parents=True, exist_ok=True)
        with log_file(out).open("a") as log:
            try:
                # The job inherits the lock, and holds it even if this process is killed.
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.taken.add(out)
                return
            log.truncate(0)
            self.running[out] = subprocess.Popen(
                self.command(self.jobs.asked[out]["stage"], REQUESTS / f"{out}.json"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": "1", **os.environ},
                start_new_session=True,  # the terminal's Ctrl-C reaches it through `stop` only
            )
        self.taken.discard(out)
        self.waiting.remove(out)
        print(f"start    {out}", flush=True)

    def _collect(self, unfinished: dict[str, str]) -> None:
        """Take ended jobs from `running`; those without a result go to `unfinished`."""
        for out, process in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[out]
            self.jobs.look_again()
            if self.jobs.is_done(out):
                print(f"done     {out}", flush=True)
                self._pack(out)
            else:
                lines = log_file(out).read_text(errors="replace").split("\n")
                last = next((line for line in reversed(lines) if line.strip()), "nothing logged")
                unfinished[out] = f"{last.strip()} (exit status {process.returncode})"

    def _pack(self, out: str) -> None:
        """Add a result to the archive; one that cannot be added is a failure, of that job only."""
        try:
            if self.archive is not None:
                self.archive.add(Path(out))
        except (OSError, UserError) as error:
            self.failed[out] = f"not packed: {error}"


def summary(batch: Batch) -> str:
    """What became of the jobs asked for, in lines."""
    failed = [f"failed   {out}: {text}; see {log_file(out)}" for out, text in batch.failed.items()]
    cut_off = [f"cut off  {out}: {text}" for out, text in batch.cut_off.items()]
    reasons = Counter(map(batch.reason, batch.waiting))
    waiting = [f"waiting  {count}: {reason}" for reason, count in reasons.items()]
    total, left = len(batch.jobs.asked), len(failed) + len(cut_off) + len(batch.waiting)
    counts = (
        f"{total - left} of {total} done, {len(cut_off)} cut off, {len(batch.waiting)} waiting, "
        f"{len(failed)} failed"
    )
    return "\n".join([*failed, *cut_off, *waiting, counts])


def command(arguments: list[str]) -> int:
    """Run a user's command; returns 0 if all is done, 1 if a job failed, 3 if some are left."""
    parser = argparse.ArgumentParser(description="Run jobs from work/requests/ without Snakemake.")
    parser.add_argument("jobs", nargs="+", help="output folders, folders above them, or globs")
    parser.add_argument("--jobs", type=int, default=1, dest="width", help="at once (default: 1)")
    parser.add_argument("--minutes", type=float, default=9, help="then stop (default: 9)")
    parser.add_argument("--only", choices=STAGES, help="jobs of this stage")
    parser.add_argument("--dry-run", action="store_true", help="list the jobs that are not done")
    parser.add_argument(
        "--pack", type=Path, help=".tar.gz that each result's small files are added to when done"
    )
    parser.add_argument(
        "--bundle", type=Path, help="write what they need elsewhere (.tar.gz, .tar.xz); run nothing"
    )
    options = parser.parse_args(arguments)
    try:
        if any(Path(".snakemake/locks").glob("*")):
            raise UserError("snakemake runs in this folder (or was killed: `snakemake --unlock`)")
        if options.width < 1:
            raise UserError(f"--jobs: found {options.width}; allowed: 1 or more")
        jobs = Jobs(options.jobs, options.only)
        if options.bundle is not None:
            counts = pack.bundle(jobs, options.bundle)
            print(f"{options.bundle}: {counts[0]} requests, {counts[1]} datasets")
            return 0
        archive = None if options.pack is None else pack.Growing(options.pack)
        batch = Batch(jobs, options.width, 60 * options.minutes, archive=archive)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    if options.dry_run:
        for out in batch.waiting:
            print(f"{out}: {batch.reason(out)}")
    else:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, batch.stop)
        batch.run()
    print(summary(batch))
    if batch.failed:
        return FAILED
    return LEFT if batch.waiting or batch.cut_off else 0


if __name__ == "__main__":
    raise SystemExit(command(sys.argv[1:]))
