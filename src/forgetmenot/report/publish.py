"""Published reports: results kept beside the page, from which the page can be made again.

reports/published/<scale>/ holds spec.json (what the report was asked), results/ and data/ (the
small files of the jobs, lines of samples compressed), and what is rendered from them.
"""

import bz2
from pathlib import Path

from forgetmenot import manifest
from forgetmenot.errors import UserError
from forgetmenot.files import write_bytes, write_json
from forgetmenot.report import pack, published
from forgetmenot.report.build import build

FOLDER = Path("reports/published")
PAPERS = Path("reports/papers")
SPEC = "spec.json"


def publish(scale: str, folder: Path = FOLDER) -> Path:
    """Store the finished report of a scale with its results, render it, and return its folder.

    Raises UserError when the report is not finished or a result does not match its manifest.
    """
    report = manifest.verify(Path("reports", scale))
    out = folder / scale
    if out.exists():
        raise UserError(f"{out}: exists already; delete it to publish anew")
    write_json(out / SPEC, report["spec"])
    wanted = {Path(entry["path"]) for entry in report["inputs"].values()}
    everything = set(pack.finished(scale))
    data = {path for path in everything if path.parts[0] != "results"}
    for job in sorted(wanted | data):
        for name, content in pack.members(job):
            if name.endswith(".jsonl"):
                write_bytes(out / f"{name}.bz2", bz2.compress(content))
            else:
                write_bytes(out / name, content)
    render(out)
    return out


def render(out: Path, papers: Path = PAPERS) -> None:
    """Make tables, figures, claims and page of a published folder again, from what it stores."""
    spec = manifest.read_object(out / SPEC, "a published report's specification")
    build(spec, published.read_all(papers), out, root=out)


def render_all(folder: Path = FOLDER) -> list[Path]:
    """Render every published report; returns their folders."""
    found = sorted(path.parent for path in folder.glob(f"*/{SPEC}"))
    for out in found:
        render(out)
    return found
