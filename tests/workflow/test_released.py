"""Released weights in the workflow: fetched, verified, scored and reported, with no training."""

import json
from pathlib import Path

import pytest
import torch
from micro_project import Project
from released_forward import checkpoint
from safetensors.torch import save_file

# The reference's configuration of the micro scale's laLTE.
CONFIG = {
    "model_type": "hybrid_gated_deltanet",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "vocab_size": 270,
    "intermediate_size": 16,
    "tie_word_embeddings": True,
    "num_heads": 2,
    "head_dim": 8,
    "expand_v": 1,
    "conv_size": 4,
    "attn": {
        "attn_type": "lte",
        "layers": [1],
        "num_heads": 2,
        "num_kv_heads": 2,
        "window_size": 7,
        "conv_size": [3, 3, 3],
        "conv_dilation": [2, 2, 2],
        "dropout_prob": 0.1,
        "buffer_size": 4,
        "sink_size": 1,
        "routing_method": "sigmoid",
        "routing_grad": True,
        "routing_shared": "head",
    },
}
SCALE = """
description: a made checkpoint behind the loader of released ones
seeds: [7]
tables: [micro-released]
studies:
  language:
    paper: lte
    title: Language
    size: micro
    variants: [gdn_lte]
    tasks: [micro-perplexity]
    released:
      gdn_lte: {repository: someone/lte, mirror: checkpoint, tokenizer: micro-bpe}
"""
TABLE = """
title: Perplexity
paper: lte
task: micro-perplexity
columns:
  - {metric: word_perplexity, header: perplexity}
"""
RUN = "results/mine/language/gdn_lte/seed7"
FETCH = "fetch mine/language/gdn_lte/seed7"


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    """The micro project with a scale of released weights and a sharded checkpoint in a mirror."""
    project = built.clone(tmp_path / "project")
    project.path("workflow/config/scales/mine.yaml").write_text(SCALE)
    project.path("workflow/config/tables/micro-released.yaml").write_text(TABLE)
    folder = project.path("checkpoint")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer = project.path("data/built/micro-bpe/tokenizer.json")
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    weights = checkpoint(CONFIG, seed=0) | {"model.l1_lambda": torch.zeros(1, 2)}
    places = {name: f"model-{n % 3}.safetensors" for n, name in enumerate(weights)}
    for file in set(places.values()):
        save_file({n: w for n, w in weights.items() if places[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return project


def test_a_mirror_is_fetched_scored_and_reported_without_training(project: Project) -> None:
    scale = ["scale=mine", "papers=lte"]
    assert project.planned(config=scale) == {
        FETCH,
        "evaluate mine/language/gdn_lte/seed7 on micro-perplexity",
        "report mine",
        "tracking store",
    }
    done = project.snakemake(config=scale)
    assert done.returncode == 0, done.stdout
    made = {path.name for path in project.path(f"{RUN}/train").iterdir()}
    assert made == {
        "config.json",
        "model.safetensors",
        "source.json",
        "manifest.json",
        "stamp.json",
    }
    assert json.loads(project.path(f"{RUN}/train/manifest.json").read_text())["stage"] == "fetch"
    page = project.path("reports/mine/index.html").read_text()
    assert "weights imported, nothing trained here" in page
    assert "learning_curves" not in page
    results = json.loads(project.path(f"{RUN}/micro-perplexity/results.json").read_text())
    value = {row["metric"]: row["value"] for row in results["metrics"]}["word_perplexity"]
    table = project.path("reports/mine/tables/micro-released.csv").read_text()
    assert repr(value) in table
    assert project.planned(config=scale) == set()

    # The model's code is the fetched model's code; training's is not.
    project.path("src/forgetmenot/train/loop.py").open("a").write("\nX = 1\n")
    assert project.planned(config=scale) == set()
    project.path("src/forgetmenot/released.py").open("a").write("\nX = 1\n")
    assert project.planned(config=scale) >= {FETCH}


def test_a_checkpoint_that_does_not_fit_leaves_one_message(project: Project) -> None:
    project.edit("checkpoint/config.json", '"window_size": 7', '"window_size": 8')
    done = project.snakemake(f"{RUN}/train/stamp.json", config=["scale=mine"])
    assert done.returncode == 1
    assert "another model than gdn_lte: lte.window is 9, expected 8" in done.stdout
    assert "Traceback" not in done.stdout
    assert not project.path(f"{RUN}/train/model.safetensors").exists()


def test_the_released_scale_fetches_and_never_trains(built: Project, tmp_path: Path) -> None:
    jobs = built.clone(tmp_path / "project").planned(config=["scale=released"])
    verbs = {job.split()[0] for job in jobs}
    assert verbs == {"data", "fetch", "evaluate", "report"}
    variants = ("gdn_attn", "gdn_lte", "gdn_nsa", "gdn_swa")
    assert {job for job in jobs if job.startswith("fetch")} == {
        f"fetch released/{study}/{variant}/seed42"
        for study in ("language", "language-1.4b")
        for variant in variants
    }
