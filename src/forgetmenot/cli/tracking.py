"""Tracking store: initialise it as a stage, rebuild it from results, or open its pages.

python -m forgetmenot.cli.tracking rebuild [--scale smoke] [--uri ADDRESS]
python -m forgetmenot.cli.tracking ui [--port 5000]
"""

import argparse
import sys

from forgetmenot.files import write_json
from forgetmenot.stage import Job, stage


def main(job: Job) -> None:
    """Create the tracking store and its experiments, before parallel jobs use them.

    A store that cannot be reached is a warning: tracking never stops a job.
    """
    from forgetmenot.tracking import store

    experiments = list(job.spec["experiments"])
    try:
        store.initialise(job.spec["uri"], experiments)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        print(f"warning: the tracking store is not available ({reason})", file=sys.stderr)
    write_json(job.out / "experiments.json", experiments)


def command(arguments: list[str]) -> int:
    """Run a user's command; returns the exit status."""
    parser = argparse.ArgumentParser(description="The tracking store (MLflow).")
    commands = parser.add_subparsers(dest="command", required=True)
    rebuilding = commands.add_parser("rebuild", help="restore the store from results")
    rebuilding.add_argument("--scale", help="only this scale's results (default: all)")
    rebuilding.add_argument("--uri", help="address of a server (default: mlflow/mlflow.db here)")
    pages = commands.add_parser("ui", help="show the store in a browser, on this machine only")
    pages.add_argument("--port", type=int, help="port to use (default: a free one)")
    options = parser.parse_args(arguments)
    if options.command == "ui":
        from forgetmenot.tracking.ui import serve

        return serve(options.port)
    from forgetmenot.tracking.rebuild import rebuild

    try:
        added, present, unreadable = rebuild(options.scale, options.uri)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        print(f"error: the tracking store cannot be rebuilt: {reason}", file=sys.stderr)
        return 2
    for line in unreadable:
        print(f"warning: left out {line}", file=sys.stderr)
    print(f"{added} runs added, {present} were there already")
    return 0


if __name__ == "__main__":
    if any(argument.startswith("--request") for argument in sys.argv[1:]):
        stage(main)
    else:
        raise SystemExit(command(sys.argv[1:]))
