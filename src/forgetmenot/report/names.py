"""What readers call things: display names of variants, studies, tasks, metrics and axis values.

A file's name never stands in a sentence, a heading or a reason; only in paths and in CSV.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TASKS = {
    "efficiency": "time and memory",
    "kept_map": "kept tokens",
    "language": "language modelling and common sense",
    "niah": "needle in a haystack",
    "niah_audit": "needles kept",
    "niah_multi": "several needles",
    "niah_nominal": "needle in a haystack, nominal lengths",
    "perplexity": "perplexity",
    "position_perplexity": "loss by position",
    "prosg_controls": "controls on the update",
    "prosg_cost": "cost of a prompt",
    "prosg_neutral": "retention over neutral filler",
    "prosg_real": "retention over English prose",
    "prosg_retention": "retention over distance",
    "prosg_rivals": "rivals without training",
    "prosg_rules": "rules followed",
    "prosg_self": "retention over the model's own text",
    "prosg_task": "retention over text that follows the rules",
    "recall": "multi-query recall",
    "recall_lm_eval": "recall from documents, lm-eval's tasks",
    "recall_standins": "recall from documents, stand-ins",
    "recall_suite": "recall from documents",
    "train": "the model itself",
}
METRICS = {
    "aufc": "AUFC",
    "contains": "share of answers contained",
    "decode_ms": "decoding step (ms)",
    "flops_per_token": "FLOPs per token",
    "general_nll": "loss on general text",
    "state_bytes": "bytes of state",
}
VALUES = {
    "niah_1": "S-NIAH-1",
    "niah_2": "S-NIAH-2",
    "niah_3": "S-NIAH-3",
    "niah_multikey": "one of four keys",
    "niah_multiquery": "four keys",
    "niah_multivalue": "four values of one key",
}


@dataclass(frozen=True)
class Names:
    """Display names of a report's variants and studies, by their own; any other is as it is."""

    variants: Mapping[str, str] = field(default_factory=dict)
    studies: Mapping[str, str] = field(default_factory=dict)

    def variant(self, name: str) -> str:
        """A variant's label in tables."""
        return self.variants.get(name, name)

    def study(self, name: str) -> str:
        """A study's title."""
        return self.studies.get(name, name)

    def where(self, study: str) -> str:
        """In which study, as the end of a sentence; a study that is not here has no title."""
        if study in self.studies:
            return f' in the study "{self.study(study)}"'
        return " (its study is not part of this report)"


def of(spec: Mapping[str, Any]) -> Names:
    """The names of all that the report's request `spec` has or, in its claims, only mentions."""
    own = {
        variant["name"]: variant.get("label") or variant["name"]
        for study in spec["studies"].values()
        for variant in study["variants"]
    }
    studies = {name: study.get("title") or name for name, study in spec["studies"].items()}
    return Names({**spec.get("claim_labels", {}), **own}, studies)


def task(name: str) -> str:
    """A task as readers know it."""
    return TASKS.get(name, name.replace("_", " "))


def metric(name: str) -> str:
    """A metric as readers know it."""
    return METRICS.get(name, name.replace("_", " "))


def value(found: Any) -> str:
    """An axis value as readers know it."""
    return VALUES.get(str(found), str(found))
