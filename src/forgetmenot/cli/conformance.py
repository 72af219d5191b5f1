"""Compare with logits of the reference: `python -m forgetmenot.cli.conformance FOLDER`."""

import argparse
import sys
from pathlib import Path

from forgetmenot.errors import UserError

LIMIT = 1e-2  # relative RMS; the reference's own fp16 casts leave a few 1e-3


def main(arguments: list[str] | None = None) -> None:
    """Print a table (file, relative RMS of the logits, limit) and exit: 0 all within the limit.

    FOLDER holds golden.json, {name: {"config": {...}}}, and for each name `<name>.safetensors` with
    the reference's parameters under `w.`, `input_ids` [B, T] and `logits` [B, T, V]. Exit status: 1
    above the limit, 2 bad input (one line on stderr).
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="golden.json and the safetensors files it names")
    folder = parser.parse_args(arguments).folder
    try:
        errors = compare(folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    width = max(map(len, errors))
    print(f"{'file':{width}}  relative RMS  limit")
    # A NaN is no agreement either, so the test is for what is within the limit.
    for name, found in errors.items():
        mark = "" if found <= LIMIT else "  above the limit"
        print(f"{name:{width}}  {found:12.2e}  {LIMIT:.0e}{mark}")
    raise SystemExit(int(not all(found <= LIMIT for found in errors.values())))


def compare(folder: Path) -> dict[str, float]:
    """Relative RMS error of our logits for each file that golden.json of `folder` names.

    Raises UserError for a file that is missing or unfit.
    """
    import torch

    from forgetmenot.manifest import read_object
    from forgetmenot.released import from_reference
    from forgetmenot.released_files import read_tensors

    golden = read_object(folder / "golden.json", "{name: {'config': {...}}}")
    errors = {}
    for name, entry in golden.items():
        path = folder / f"{name}.safetensors"
        tensors = read_tensors(path)
        lacking = {"input_ids", "logits"} - tensors.keys()
        if lacking:
            raise UserError(f"{path}: no {' and no '.join(sorted(lacking))} in it")
        weights = {key[2:]: value for key, value in tensors.items() if key.startswith("w.")}
        model = from_reference(entry["config"], weights, f"{folder / 'golden.json'}: {name}")
        with torch.no_grad():
            logits = model(tensors["input_ids"].long()).logits
        wanted = tensors["logits"].float()
        errors[path.name] = float((logits - wanted).norm() / wanted.norm())
    if not errors:
        raise UserError(f"{folder / 'golden.json'}: names no file")
    return errors


if __name__ == "__main__":
    main()
