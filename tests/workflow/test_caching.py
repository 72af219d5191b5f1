"""What an edit reruns: the table of docs/caching.md, row by row, on real results."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from micro_project import Project

REPORT = "report micro"
GDN = {"train micro/recall/gdn/seed0", "evaluate micro/recall/gdn/seed0 on micro-recall"}
LTE_RECALL = {
    "train micro/recall/gdn_lte/seed0",
    "evaluate micro/recall/gdn_lte/seed0 on micro-recall",
}
LTE_LANGUAGE = {
    "train micro/language/gdn_lte/seed0",
    "evaluate micro/language/gdn_lte/seed0 on micro-perplexity",
}
RWKV = {
    "train micro/prompts/rwkv4/seed0",
    "evaluate micro/prompts/rwkv4/seed0 on micro-retention",
}
PROSG = {
    "train micro/prompts/rwkv4_prosg/seed0",
    "evaluate micro/prompts/rwkv4_prosg/seed0 on micro-retention",
}
SOURCES = "src/forgetmenot"
CONFIG = "workflow/config"


def append(relative: str, text: str) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        with project.path(relative).open("a") as file:
            file.write(text)

    return change


def replace(relative: str, old: str, new: str) -> Callable[[Project], None]:
    return lambda project: project.edit(relative, old, new)


def delete(*relatives: str) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        for relative in relatives:
            shutil.rmtree(project.path(relative))

    return change


def touch_everything(project: Project) -> None:
    for path in project.folder.rglob("*"):
        if path.is_file():
            os.utime(path)


EDITS: dict[str, tuple[Callable[[Project], None], set[str]]] = {
    "nothing": (lambda project: None, set()),
    "all files touched": (touch_everything, set()),
    "a comment in a mixer": (append(f"{SOURCES}/mixers/lte.py", "\n# why\n"), set()),
    "a rule's text": (replace("workflow/rules/train.smk", "tee {log:q}", "tee -a {log:q}"), set()),
    "the tracking code": (append(f"{SOURCES}/tracking/run.py", "\nX = 1\n"), set()),
    "Snakemake's own records lost": (delete(".snakemake"), set()),
    "the tracking store lost": (delete("mlflow"), {"tracking store"}),
    "a table's code": (append(f"{SOURCES}/report/tables.py", "\nX = 1\n"), {REPORT}),
    "a table's configuration": (
        replace(f"{CONFIG}/tables/micro.yaml", "title: Recall", "title: Recall by pairs"),
        {REPORT},
    ),
    "a model's label": (replace(f"{CONFIG}/models/gdn.yaml", "label: GDN", "label: DN"), {REPORT}),
    "the LTE mixer": (
        append(f"{SOURCES}/mixers/lte.py", "\nX = 1\n"),
        LTE_RECALL | LTE_LANGUAGE | {REPORT},
    ),
    "the LTE kernel": (
        append("kernels/forgetmenot_kernels/lte_attention/reference.py", "\nX = 1\n"),
        LTE_RECALL | LTE_LANGUAGE | {REPORT},
    ),
    "ProSG's generator": (append(f"{SOURCES}/prosg/generator.py", "\nX = 1\n"), PROSG | {REPORT}),
    "one model's configuration": (
        append(f"{CONFIG}/models/gdn.yaml", "overrides: {gdn: {conv: 3}}\n"),
        GDN | {REPORT},
    ),
    "a model that another starts from": (
        append(f"{CONFIG}/models/rwkv4.yaml", "overrides: {rwkv4_channel: {width: 8}}\n"),
        RWKV | PROSG | {REPORT},
    ),
    "one task's configuration": (
        append(f"{CONFIG}/tasks/micro-recall.yaml", "options: {batch_size: 3}\n"),
        {job for job in GDN | LTE_RECALL if job.startswith("evaluate")} | {REPORT},
    ),
    "an evaluator's code": (
        append(f"{SOURCES}/evaluate/perplexity.py", "\nX = 1\n"),
        {job for job in LTE_LANGUAGE if job.startswith("evaluate")} | {REPORT},
    ),
    "a study's training": (
        replace(f"{CONFIG}/scales/micro.yaml", "tokens_per_step: 128", "tokens_per_step: 96"),
        RWKV | PROSG | {REPORT},
    ),
    "a dataset's configuration": (
        replace(f"{CONFIG}/data/micro-mqar.yaml", "samples: 4", "samples: 5"),
        {"data micro-mqar"} | GDN | LTE_RECALL | {REPORT},
    ),
    "a dataset that others need": (
        replace(f"{CONFIG}/data/micro-bpe.yaml", "vocab_size: 270", "vocab_size: 271"),
        {"data micro-bpe", "data micro-tokens"} | LTE_LANGUAGE | {REPORT},
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_reruns_what_depends_on_it(built: Project, tmp_path: Path, name: str) -> None:
    edit, jobs = EDITS[name]
    project = built.clone(tmp_path / "project")
    edit(project)
    assert project.planned() == jobs


def test_changed_code_is_noticed_though_snakemake_lost_its_records(
    built: Project, tmp_path: Path
) -> None:
    project = built.clone(tmp_path / "project")
    delete(".snakemake")(project)
    append(f"{SOURCES}/mixers/gdn.py", "\nX = 1\n")(project)
    assert project.planned() == GDN | LTE_RECALL | LTE_LANGUAGE | {REPORT}


def test_the_tracking_address_reruns_only_the_store(built: Project, tmp_path: Path) -> None:
    project = built.clone(tmp_path / "project")
    replace(f"{CONFIG}/config.yaml", "uri: null", "uri: http://127.0.0.1:1")(project)
    assert project.planned() == {"tracking store"}


def test_results_are_recognised_when_all_records_are_lost(built: Project, tmp_path: Path) -> None:
    project = built.clone(tmp_path / "project")
    delete(".snakemake", "work")(project)
    stamps = sorted(project.folder.rglob("stamp.json"))
    ids = {path: json.loads(path.read_text())["id"] for path in stamps}
    weights = project.path("results/micro/recall/gdn/seed0/train/model.safetensors")
    before = weights.stat().st_mtime_ns
    for path in stamps:
        path.unlink()
    done = project.snakemake()
    assert done.returncode == 0, done.stdout
    assert {path: json.loads(path.read_text())["id"] for path in stamps} == ids
    assert weights.stat().st_mtime_ns == before
    logs = list(project.path("work/logs").rglob("*.log"))
    assert len(logs) == len(stamps)
    assert all("recognised: " in log.read_text() for log in logs)
    assert project.planned() == set()


def test_choosing_a_paper_plans_only_its_jobs(built: Project, tmp_path: Path) -> None:
    project = built.clone(tmp_path / "project")
    assert project.planned("--forceall", config=["papers=[prosg]"]) == {
        "tracking store",
        "data micro-prompts",
        *RWKV,
        *PROSG,
        REPORT,
    }
