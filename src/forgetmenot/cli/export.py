"""Export a trained model for Hugging Face's tools.

python -m forgetmenot.cli.export MODEL_FOLDER OUT [--tokenizer FOLDER]
"""

import argparse
import sys
from pathlib import Path

from forgetmenot.errors import UserError


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status: 0, or 2 for bad input (one line on stderr)."""
    parser = argparse.ArgumentParser(description="Export a trained model for Hugging Face's tools.")
    parser.add_argument("model_folder", type=Path, help="a training output, such as .../train")
    parser.add_argument("out", type=Path, help="the folder to write: new or empty")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer to save beside it")
    options = parser.parse_args(arguments)

    from forgetmenot.export import export

    try:
        export(options.model_folder, options.tokenizer, options.out)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
