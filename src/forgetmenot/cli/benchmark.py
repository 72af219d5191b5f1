"""Measure speed and memory: `python -m forgetmenot.cli.benchmark <benchmark> [options]`.

Without a benchmark it lists those there are. With --format json it also says on what machine, with
which versions and when.
"""

import argparse
import ast
import importlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from forgetmenot.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "benchmark"


def benchmarks() -> dict[str, str]:
    """Name and first line of every benchmark: a file of the folder, unless it begins with _."""
    return {
        path.stem.replace("_", "-"): (
            ast.get_docstring(ast.parse(path.read_bytes())) or ""
        ).partition("\n")[0]
        for path in sorted(FOLDER.glob("[!_]*.py"))
    }


def main(arguments: list[str]) -> int:
    """Run the benchmark that is named first; returns the exit status, 2 for bad input."""
    found = benchmarks()
    listing = "\n".join(f"  {name}: {text}" for name, text in found.items())
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nBenchmarks (each has --help):\n{listing}")
        return 0
    name = arguments[0]
    if name not in found:
        print(f"error: benchmark: found {name!r}; allowed:\n{listing}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"forgetmenot.benchmark.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=f"python -m forgetmenot.cli.benchmark {name}",
        description=module.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    module.add_arguments(parser)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args(arguments[1:])
    form = options.format
    del options.format
    try:
        result = module.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if form == "table":
        print(module.table(result))
        return 0
    from forgetmenot.provenance import provenance

    date = datetime.now(UTC).isoformat(timespec="seconds")
    print(json.dumps({"benchmark": name, "date": date, **provenance(), **result}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
