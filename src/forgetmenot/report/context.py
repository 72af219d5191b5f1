"""What must stand under every table: scale, seeds, tokens, deviations, whose numbers these are."""

from collections.abc import Mapping
from typing import Any

from forgetmenot.report.results import TRAIN, Results, values

NO_PAPER_TABLE = "The paper's own table is not available to this project."
PAPER_NOTES = {
    "lte": [f"LTE (arXiv 2510.20787): {NO_PAPER_TABLE}"],
    "prosg": [
        f"ProSG (arXiv 2311.01981): {NO_PAPER_TABLE}",
        "What runs here is a from-scratch implementation of the method as the abstract describes "
        + "it; the details are ours.",
    ],
}


def notes(paper: str, studies: list[str], spec: Mapping[str, Any], results: Results) -> list[str]:
    """Notes for a table over `studies` of the report's request `spec`."""
    lines = [f"Scale {spec['scale']}: {spec['description']}"]
    for name in studies:
        study = spec["studies"][name]
        seeds = ", ".join(str(seed) for seed in study["seeds"])
        lines.append(
            f"{study.get('title') or name}: seeds {seeds}; {tokens(name, study, results)}."
        )
    deviations = list(spec.get("deviations", []))
    for name in studies:
        deviations += spec["studies"][name].get("deviations") or []
    lines += [f"Deviation: {deviation}" for deviation in deviations]
    lines += PAPER_NOTES.get(paper, [])
    return [line if line.endswith(".") else f"{line}." for line in lines]


def tokens(name: str, study: Mapping[str, Any], results: Results) -> str:
    """Training tokens of a study's models, as a range over variants and seeds."""
    models = [m for v in study["variants"] for m in results.get(name, v["name"], TRAIN)]
    if models and all(model.untrained for model in models):
        return "weights imported, nothing trained here"
    counts = [
        count
        for variant in study["variants"]
        for count in values(results.get(name, variant["name"], TRAIN), "tokens", {})[0]
    ]
    if not counts:
        return "training tokens unknown (no finished training run)"
    low, high = (f"{count / 1e6:.3g}M" for count in (min(counts), max(counts)))
    return f"{low} training tokens a model" if low == high else f"{low} to {high} tokens a model"
