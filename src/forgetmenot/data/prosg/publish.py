"""Makes a built folder a Hugging Face dataset: a card that names the files, and their hashes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from forgetmenot.data.prosg import evalset, trainset
from forgetmenot.data.prosg.card import CARD, MODES_TEXT
from forgetmenot.files import sha256_file, write_json, write_text

Columns = dict[str, str | list[str]]
RULE_COLUMNS: Columns = {
    "kind": "string",
    "instruction": "string",
    "accepted": ["string"],
    "follows": ["string"],
    "random": ["string"],
}
_LICENCE = "MIT, as the code that generates it"


def publish(out: Path, options: Any, meta: Mapping[str, Any]) -> None:
    """Write README.md and seeds.json beside the data files of a set built with `options`."""
    write_text(out / "README.md", dataset_card(options, meta))
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "README.md")
    hashes = {str(path.relative_to(out)): _entry(path) for path in files}
    write_json(out / "seeds.json", {"seed": options.seed, "files": hashes})


def dataset_card(options: Any, meta: Mapping[str, Any]) -> str:
    """The dataset card, with the configurations, splits and columns as YAML front matter."""
    configs = {mode: _splits(options, mode) for mode in options.modes}
    columns: dict[str, Columns] = dict.fromkeys(options.modes, evalset.COLUMNS)
    sampled = {"train": options.train_samples, "validation": options.validation_samples}
    if any(sampled.values()):
        splits = {name: f"{name}.jsonl" for name, count in sampled.items() if count}
        configs = {"train": splits, **configs}
        columns["train"] = trainset.COLUMNS
    configs["rules"], columns["rules"] = {"examples": "rules.jsonl"}, RULE_COLUMNS
    files = [_config(name, splits) for name, splits in configs.items()]
    files[0]["default"] = True
    front = {
        "pretty_name": "ProSG-PF",
        "language": ["en"],
        "license": "other" if "prose" in meta else "mit",
        "task_categories": ["text-generation", "question-answering"],
        "tags": ["synthetic", "prompt-forgetting", "recurrent-language-models"],
        "configs": files,
        "dataset_info": [
            {"config_name": name, "features": _features(columns[name])} for name in configs
        ],
    }
    body = CARD.format(
        seed=options.seed,
        vocabulary=meta["vocab_size"],
        facts=", ".join(map(str, options.facts)),
        distances=", ".join(map(str, options.distances)),
        samples=options.samples,
        first=next(iter(configs)),
        modes="\n".join(f"| `{mode}` | {MODES_TEXT[mode]} |" for mode in options.modes),
        licence=_licences(meta),
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{body}"


def _splits(options: Any, mode: str) -> dict[str, str]:
    # The library allows no hyphen in the name of a split.
    return {
        split.replace("-", "_"): evalset.file_name(split, mode, "*")
        for split in options.splits
        if split != "dense" or options.dense_facts
    }


def _config(name: str, splits: Mapping[str, str]) -> dict[str, Any]:
    files = [{"split": split, "path": path} for split, path in splits.items()]
    return {"config_name": name, "data_files": files}


def _features(columns: Columns) -> list[dict[str, str]]:
    return [
        {"name": name, "list": kind[0]} if isinstance(kind, list) else {"name": name, "dtype": kind}
        for name, kind in columns.items()
    ]


def _licences(meta: Mapping[str, Any]) -> str:
    if "prose" not in meta:
        return f"{_LICENCE}."
    sources = [
        f"- `{name}`: {origin.get('licence', 'not stated')}"
        for name, origin in sorted(meta["prose"]["origins"].items())
    ]
    head = f"{_LICENCE}; the bodies of `real` and of `real` sequences in `train` are from:"
    return "\n".join([head, "", *sources])


def _entry(path: Path) -> dict[str, Any]:
    """Hash of a file, and the seeds of its first and last line where it has them."""
    entry: dict[str, Any] = {"sha256": sha256_file(path)}
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        entry["rows"] = len(lines)
        ends = [json.loads(line).get("seed") for line in (lines[0], lines[-1])]
        if all(ends):
            entry["first_seed"], entry["last_seed"] = ends
    return entry
