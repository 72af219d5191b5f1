"""Reports: make one as a stage, carry finished results between machines, publish them.

python -m forgetmenot.cli.report pack ARCHIVE --scale small   small files of all finished jobs
python -m forgetmenot.cli.report unpack ARCHIVE...            put them in their places
python -m forgetmenot.cli.report publish --scale small        keep a report with its results
python -m forgetmenot.cli.report published                    render the kept ones again
"""

import argparse
import sys
from pathlib import Path

from forgetmenot.errors import UserError
from forgetmenot.stage import BAD_INPUT, Job, stage

PAPERS = Path("reports/papers")


def main(job: Job) -> None:
    """Write tables, claims, figures and index.html from the results that `job.spec` names.

    Spec: `scale`, `description`, `papers`, `deviations`, `studies` ({name: its configuration, with
    `variants` as {"name", "label", "description"} and its `seeds`}), `tables` and `claims` (see
    report/spec.py), `claim_labels` ({variant: label} of all that the claims name), `results` and
    `trains` ({"<study>/<variant>/seed<k>[/<task>]": folder}).
    """
    from forgetmenot.report import published
    from forgetmenot.report.build import build

    final = job.out.with_name(job.out.name.removesuffix(".partial"))
    build(job.spec, published.read_all(PAPERS), job.out, final)


def command(arguments: list[str]) -> int:
    """Run a user's command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Carry finished results, and publish them.")
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="small files of a scale's finished jobs")
    packing.add_argument("archive", type=Path, help=".tar.gz to write")
    packing.add_argument("--scale", required=True)
    unpacking = commands.add_parser("unpack", help="put packed or published results in place")
    unpacking.add_argument("sources", type=Path, nargs="+", help="archives, or published folders")
    publishing = commands.add_parser("publish", help="keep a finished report with its results")
    publishing.add_argument("--scale", required=True)
    commands.add_parser("published", help="render every published report from what it keeps")
    options = parser.parse_args(arguments)
    try:
        (_carry if options.command in ("pack", "unpack") else _publish)(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def _carry(options: argparse.Namespace) -> None:
    """Pack or unpack. Imports nothing that draws: machines that only make results lack that."""
    from forgetmenot.report import pack

    if options.command == "unpack":
        for source in options.sources:
            added, present, unfit = pack.unpack(source)
            print(f"{source}: {added} results added, {present} were there already")
            if unfit:
                print(f"  {unfit} of them are of other options or code and will be made anew")
        return
    jobs = pack.pack(options.scale, options.archive)
    size = options.archive.stat().st_size / 1e6
    print(f"{options.archive}: {jobs} finished jobs, {size:.1f} MB")
    missing, other = pack.unfinished(options.scale)
    if missing:
        print(f"  {missing} jobs of {options.scale} are not finished, and not in it")
    if other:
        print(f"  {other} in it are of other options, code or inputs than are asked for now")
    if missing or other:
        print(f"  which: python -m forgetmenot.cli.batch results/{options.scale} --dry-run")


def _publish(options: argparse.Namespace) -> None:
    """Keep a report, or render again those that are kept."""
    from forgetmenot.report import publish

    if options.command == "publish":
        folders = [publish.publish(options.scale)]
    else:
        folders = publish.render_all()
    for folder in folders:
        print(folder / "index.html")


if __name__ == "__main__":
    if any(argument.startswith("--request") for argument in sys.argv[1:]):
        stage(main, whole=False)
    else:
        raise SystemExit(command(sys.argv[1:]))
