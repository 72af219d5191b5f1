"""Turn a released RWKV-4 checkpoint into a model folder of ours.

python -m forgetmenot.cli.import_rwkv4 FILE.pth OUT
"""

import argparse
import sys
from pathlib import Path

from forgetmenot.errors import UserError


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status: 0, or 2 for bad input (one line on stderr)."""
    parser = argparse.ArgumentParser(
        description="Turn a released RWKV-4 checkpoint into a model folder of ours."
    )
    parser.add_argument("file", type=Path, help="a checkpoint, such as RWKV-4-Pile-169M-....pth")
    parser.add_argument("out", type=Path, help="the folder to write: new or empty")
    options = parser.parse_args(arguments)
    try:
        convert(options.file, options.out)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: written")
    return 0


def convert(file: Path, out: Path) -> None:
    """Write `config.json`, `model.safetensors` and `source.json` (name and hash of the file).

    Raises UserError for a file that is no RWKV-4 checkpoint and for an `out` that holds files.
    """
    from forgetmenot import model as models
    from forgetmenot import rwkv4_checkpoint
    from forgetmenot.files import sha256_file, write_json

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: found files there; allowed: a new or an empty folder")
    model = rwkv4_checkpoint.from_checkpoint(rwkv4_checkpoint.read(file), str(file))
    write_json(out / "source.json", {"file": file.name, "sha256": sha256_file(file)})
    models.save(model, out)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
