"""Measure speed and memory: `python -m forgetmenot.cli.benchmark <benchmark> [options]`.

Without a benchmark it lists those there are. As JSON, printed (--format json) or written (--out), a
result also says on what machine, with which versions and when.
"""

import argparse
import ast
import importlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from forgetmenot.errors import UserError
from forgetmenot.files import write_json
from forgetmenot.provenance import provenance

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
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--out", type=Path, help="file to write the result to as well, as JSON")
    options = parser.parse_args(arguments[1:])
    form, out = options.format, options.out
    del options.format, options.out
    try:
        result = module.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    date = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"benchmark": name, "date": date, **provenance(), **result}
    if out is not None:
        write_json(out, record)
    print(module.table(result) if form == "text" else json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
