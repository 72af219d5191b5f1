"""Writing the plan's request files, so that a file's time tells when the job itself changed."""

import json
import os
from pathlib import Path
from typing import Any

from forgetmenot.files import write_json
from forgetmenot.manifest import identity
from forgetmenot.resolve import Plan


def write_requests(plan: Plan) -> None:
    """Write the requests that changed, relative to the current directory.

    While another run holds Snakemake's lock nothing is written: its jobs still read these files.
    """
    locks = Path(".snakemake/locks")
    if locks.is_dir() and any(locks.iterdir()):
        return
    for out, job in plan.jobs.items():
        write_request(Path(plan.request_file(out)), job.request)


def write_request(path: Path, request: dict[str, Any]) -> None:
    """Write a request if it differs from the file.

    The file keeps its time when only tracking, tags or paths differ, which decide no result: the
    job is not run again for them.
    """
    # Through JSON, so that tuples compare equal to the lists they become.
    request = json.loads(json.dumps(request))
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        times = path.stat()
    except (OSError, ValueError):
        old = None
    if old == request:
        return
    write_json(path, request)
    if old is not None and identity(old) == identity(request):
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
