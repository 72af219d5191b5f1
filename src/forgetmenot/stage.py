"""The runner of every stage: one request in, one verified folder out, nothing half done.

A stage's command is `stage(main)`, where `main(job)` writes its outputs into `job.out`.
"""

import argparse
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forgetmenot import manifest
from forgetmenot.code_hash import code_hash
from forgetmenot.errors import UserError
from forgetmenot.files import sha256_json, write_json

BAD_INPUT = 2
NO_SPACE = 3
INSTALL = "python -m pip install -e ."


@dataclass
class Job:
    """What a stage's `main` gets.

    `out` is a fresh folder that replaces the final one when `main` returns. `work` outlives
    failures and is the same for the same request and inputs: the place for checkpoints. `run` is
    the tracking run, whose methods never raise. `main` may set `volatile` to the outputs that
    differ between equal runs, such as a curve with wall times: they do not make a rebuilt result a
    new one.
    """

    name: str
    spec: dict[str, Any]
    seed: int
    inputs: dict[str, Path]
    out: Path
    work: Path
    run: Any
    volatile: tuple[str, ...] = ()


def stage(
    main: Callable[[Job], None], arguments: list[str] | None = None, *, whole: bool = True
) -> None:
    """Run `main` for the request named on the command line, and exit.

    Without `whole`, inputs suffice whose large files stayed on the machine that made them.
    Exit status: 0 done or already done, 2 bad input (one line on stderr), 3 no space (one line).
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--request", type=Path, required=True, help="request file of the job")
    request_path = parser.parse_args(arguments).request
    try:
        run_stage(main, request_path, whole=whole)
    except UserError as error:
        _exit(str(error), BAD_INPUT)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("forgetmenot"):
            raise
        _exit(
            f"package {error.name!r} is missing for {sys.executable}; install with: {INSTALL}",
            BAD_INPUT,
        )
    except Exception as error:
        if not _is_no_space(error):
            raise
        _exit(f"no space left: {error}. Earlier results are untouched", NO_SPACE)


def run_stage(main: Callable[[Job], None], request_path: Path, *, whole: bool = True) -> None:
    """Bring the output folder of a request up to date, running `main` only if it is not.

    A result that came from another machine without its large files counts as done.
    Raises UserError for an unreadable request, a damaged input, and for code that changed after the
    job was planned.
    """
    request = manifest.load_request(request_path)
    out = Path(request["out"])
    _restore(out)
    inputs = {name: Path(path) for name, path in request["inputs"].items()}
    ids = {name: _input_id(path) for name, path in inputs.items()}
    if _recognised(request, out, ids):
        return
    if code_hash(*request["code_roots"]) != request["code"]:
        raise UserError(
            f"{request['name']}: its code changed after this job was planned; run snakemake again"
        )
    for path in inputs.values():
        manifest.verify(path, whole=whole)
    _execute(main, request, out, inputs, ids)


def _input_id(path: Path) -> str:
    expected = "a manifest; run snakemake to build this input"
    return str(manifest.read_object(path / manifest.MANIFEST, expected).get("id"))


def _recognised(request: dict[str, Any], out: Path, ids: dict[str, str]) -> bool:
    """Tell whether `out` already holds this result, whole; if so, renew its stamp."""
    try:
        found = manifest.verify(out, whole=False)
    except UserError:
        return False
    same_inputs = {name: entry["id"] for name, entry in found["inputs"].items()} == ids
    if not same_inputs or manifest.identity(found) != manifest.identity(request):
        return False
    write_json(out / manifest.STAMP, {"id": found["id"]})
    print(f"recognised: {request['name']} is already done")
    return True


def _execute(
    main: Callable[[Job], None],
    request: dict[str, Any],
    out: Path,
    inputs: dict[str, Path],
    ids: dict[str, str],
) -> None:
    from forgetmenot import provenance, tracking

    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # A changed request or input must not continue another one's checkpoint.
    work = Path(request["work"]) / sha256_json([manifest.identity(request), ids])[:16]
    work.mkdir(parents=True, exist_ok=True)
    started, clock = datetime.now(UTC), time.monotonic()
    with tracking.run(request) as run:
        job = Job(
            name=request["name"],
            spec=request["spec"],
            seed=request["seed"],
            inputs=inputs,
            out=partial,
            work=work,
            run=run,
        )
        main(job)
        outputs = manifest.hash_outputs(partial)
        record = {
            **request,
            "id": manifest.stamp_id(request, outputs, job.volatile),
            "inputs": {name: {"path": str(inputs[name]), "id": ids[name]} for name in inputs},
            "outputs": outputs,
            **provenance.provenance(),
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_seconds": round(time.monotonic() - clock, 3),
        }
        write_json(partial / manifest.MANIFEST, record)
        write_json(partial / manifest.STAMP, {"id": record["id"]})
        _swap(partial, out)
        run.finish(out)
    shutil.rmtree(request["work"], ignore_errors=True)


def _swap(partial: Path, out: Path) -> None:
    """Put `partial` in the place of `out`; a crash in between is mended by `_restore`."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)


def _restore(out: Path) -> None:
    old = out.with_name(out.name + ".old")
    if not old.exists():
        return
    # The workflow creates an empty output folder before the job: only a manifest makes it a result.
    if not (out / manifest.MANIFEST).exists():
        shutil.rmtree(out, ignore_errors=True)
        os.replace(old, out)
    else:
        shutil.rmtree(old)


def _is_no_space(error: BaseException) -> bool:
    codes = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    # safetensors reports the operating system's error as text only.
    texts = [os.strerror(code) for code in codes]
    return getattr(error, "errno", None) in codes or any(text in str(error) for text in texts)


def _exit(message: str, status: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(status)
