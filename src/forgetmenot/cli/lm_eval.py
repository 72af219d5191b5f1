"""lm-eval's own command, with our models.

python -m forgetmenot.cli.lm_eval run --model forgetmenot --model_args model=FOLDER,tokenizer=FOLDER
--tasks ...; all other options are as lm-eval has them.
"""

import importlib
import sys

from forgetmenot.errors import UserError


def main() -> int:
    """Register our models with lm-eval and run its command; 2 for bad input, told on stderr."""
    importlib.import_module("forgetmenot.evaluate.harness")
    command = importlib.import_module("lm_eval.__main__")
    try:
        command.cli_evaluate()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
