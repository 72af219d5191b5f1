"""JSON lines, plain or compressed."""

import bz2
import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines of a file, or of <file>.bz2; without both there are none."""
    packed = path.with_name(f"{path.name}.bz2")
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif packed.is_file():
        text = bz2.decompress(packed.read_bytes()).decode()
    else:
        return []
    return [json.loads(line) for line in text.splitlines() if line.strip()]
