"""Print what each variant costs at a size: parameters, bytes of state, FLOPs per token.

python -m forgetmenot.cli.cost --size 0.4B [--variants gdn gdn_lte] [--format json]
"""

import argparse
import dataclasses
import json
import sys

from forgetmenot.errors import UserError

CONTEXTS = (1024, 4096, 32768)
VOCAB = 32_000


def main(arguments: list[str] | None = None) -> int:
    """Print the table or JSON; returns the exit status, 2 for bad input."""
    from forgetmenot import cost

    parser = argparse.ArgumentParser(
        description="Cost of the LTE paper's variants, computed from the code.",
        epilog=cost.COUNTED + " Kinds: " + _kinds(cost.HIERARCHY),
    )
    parser.add_argument("--size", required=True, help="0.4B, 1.4B or a file in sizes/")
    parser.add_argument("--variants", nargs="+", help="files in models/ (default: the paper's)")
    parser.add_argument("--contexts", nargs="+", type=int, default=CONTEXTS, help="tokens before")
    parser.add_argument("--vocab", type=int, default=VOCAB, help=f"tokens (default {VOCAB})")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args(arguments)
    try:
        found = _costs(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=1) if options.format == "json" else _table(found, options))
    return 0


def _costs(options: argparse.Namespace) -> dict[str, dict[str, object]]:
    from forgetmenot import cost, variants

    for name, values in (("vocab", [options.vocab]), ("contexts", options.contexts)):
        if min(values) < 1:
            raise UserError(f"{name}: found {min(values)}; allowed: 1 or more")
    entries = variants.library()
    chosen = options.variants or variants.paper_variants(options.size, entries)
    specs = {name: variants.spec(name, options.size, options.vocab, entries) for name in chosen}
    return {
        name: dataclasses.asdict(cost.of(spec, options.contexts)) for name, spec in specs.items()
    }


def _kinds(hierarchy: dict[str, str]) -> str:
    return ", ".join(f"({level}) {text}" for level, text in hierarchy.items()) + "."


def _table(found: dict[str, dict[str, object]], options: argparse.Namespace) -> str:
    from forgetmenot import cost

    head = ["variant", "kind", "parameters"]
    head += [f"state KiB @{n}" for n in options.contexts]
    head += [f"MFLOP @{n}" for n in options.contexts]
    lines = [head]
    for name, values in found.items():
        state, flops = values["state_bytes"], values["flops_per_token"]
        assert isinstance(state, dict)
        assert isinstance(flops, dict)
        cells = [name, str(values["kind"]), f"{values['parameters']:,}"]
        cells += [f"{state[n] / 1024:,.1f}" for n in options.contexts]
        cells += [f"{flops[n] / 1e6:,.2f}" for n in options.contexts]
        lines.append(cells)
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    rows = [
        "  ".join(
            cell.ljust(width) if n < 2 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    notes = [f"Size {options.size}, vocabulary {options.vocab:,}.", cost.COUNTED]
    return "\n".join([*rows, "", *notes, f"Kinds: {_kinds(cost.HIERARCHY)}"])


if __name__ == "__main__":
    raise SystemExit(main())
