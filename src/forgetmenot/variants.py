"""A variant of the configuration at a size as a model spec, for commands outside the workflow."""

from pathlib import Path
from typing import Any

from forgetmenot.config import Library
from forgetmenot.config_files import one_of
from forgetmenot.errors import UserError
from forgetmenot.model_spec import model_spec

CONFIG = Path("workflow/config")
CHECKOUT = Path(__file__).resolve().parents[2]
# The LTE paper's models, in the order of its hierarchy (specification, sections 1.1 and 1.2).
PAPER_VARIANTS = ("gdn", "gdn_swa", "gdn_lte", "gdn_nsa", "gdn_attn", "nsa", "transformer")


def library() -> Library:
    """The configuration of the project in the current folder, else of this checkout.

    Raises UserError when neither is there.
    """
    for folder in (CONFIG, CHECKOUT / CONFIG):
        if folder.is_dir():
            return Library(folder)
    raise UserError(f"{CONFIG}: not found; run this command in the project's folder")


def size_name(name: str, entries: Library) -> str:
    """The file in sizes/ of a size: its own name, or the paper's (0.4B, 1.4B)."""
    names = entries.names("sizes")
    paper = f"lte-{name.lower()}"
    return paper if paper in names else one_of(name, names, "size (or 0.4B, 1.4B)")


def spec(variant: str, size: str, vocab: int, entries: Library) -> dict[str, Any]:
    """The plain model spec of a variant (models/) at a size (sizes/). Raises UserError."""
    file = size_name(size, entries)
    found = model_spec(
        entries.model(variant, "variant"),
        entries.size(file, "size"),
        str(entries.path("models", variant)),
        str(entries.path("sizes", file)),
    )
    return {**found, "vocab": vocab}


def paper_variants(size: str, entries: Library) -> list[str]:
    """Those of the paper's variants that the configuration has and the size has blocks for."""
    blocks = entries.size(size_name(size, entries), "size").blocks
    here = entries.names("models")
    return [
        name
        for name in PAPER_VARIANTS
        if name in here and set(entries.model(name, "variant").pattern) <= set(blocks)
    ]
