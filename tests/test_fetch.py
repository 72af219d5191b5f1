"""Fetching released weights: a made checkpoint in the layout of the hub, whole and spoilt."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from released_forward import checkpoint
from safetensors.torch import save_file

from forgetmenot import model as models
from forgetmenot.cli import fetch
from forgetmenot.config import Library
from forgetmenot.errors import UserError
from forgetmenot.model_spec import model_spec
from forgetmenot.released import from_reference
from forgetmenot.released_config import model_spec as released_spec
from forgetmenot.resolve import Plan, load_plan
from forgetmenot.stage import Job

WORKFLOW = Path(__file__).resolve().parents[1] / "workflow" / "config"
MICRO = Path(__file__).resolve().parent / "workflow" / "micro"
CONFIG = {
    "architectures": ["HybridGatedDeltaNetForCausalLM"],
    "model_type": "hybrid_gated_deltanet",
    "transformers_version": "4.49.0",
    "torch_dtype": "float32",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "vocab_size": 20,
    "intermediate_size": 16,
    "tie_word_embeddings": False,
    "num_heads": 2,
    "head_dim": 8,
    "expand_v": 1,
    "conv_size": 4,
    "attn": {"attn_type": "attn", "layers": [1], "num_heads": 2, "window_size": 6},
}
WHERE = r"workflow/config/scales/mine\.yaml: studies\.language\.released\.gdn_swa"


def write_checkpoint(folder: Path, *, sharded: bool = True) -> dict[str, torch.Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    weights = checkpoint(CONFIG, seed=0)
    if not sharded:
        save_file(weights, folder / "model.safetensors")
        return weights
    places = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(weights)}
    for file in set(places.values()):
        save_file({n: w for n, w in weights.items() if places[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weights


def write_tokenizer(folder: Path, tokens: list[str]) -> Path:
    from tokenizers import Tokenizer, models

    folder.mkdir(parents=True, exist_ok=True)
    Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, "<unk>")).save(
        str(folder / "tokenizer.json")
    )
    return folder


def job(tmp_path: Path, **change: Any) -> Job:
    spec = {
        "model": {**released_spec(CONFIG), "vocab": None},
        "repository": "someone/gdn-swa",
        "revision": None,
        "mirror": str(tmp_path / "mirror"),
    }
    out = tmp_path / "out"
    out.mkdir()
    inputs = change.pop("inputs", {})
    return Job("mine/language/gdn_swa/seed42", spec | change, 42, inputs, out, tmp_path, None)


@pytest.mark.parametrize("sharded", [True, False])
def test_a_mirror_becomes_a_model_folder_of_ours(tmp_path: Path, sharded: bool) -> None:
    weights = write_checkpoint(tmp_path / "mirror", sharded=sharded)
    write_tokenizer(tmp_path / "mirror", ["<unk>", "a", "b"])
    tokenizer = write_tokenizer(tmp_path / "ours", ["<unk>", "a", "b"])
    made = job(tmp_path, inputs={"tokenizer": tokenizer})
    fetch.main(made)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        found = models.load(made.out)(ids).logits
        assert torch.equal(found, from_reference(CONFIG, weights)(ids).logits)
    source = json.loads((made.out / "source.json").read_text())
    assert source["repository"] == "someone/gdn-swa"
    assert (source["mirror"], source["revision"]) == (True, None)
    assert len(source["files"]) == (5 if sharded else 3)
    assert all(len(digest) == 64 for digest in source["files"].values())


def test_the_hub_is_asked_for_the_files_used_at_the_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "cache")
    asked: dict[str, Any] = {}

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    made = job(tmp_path, mirror=None, revision="a" * 40)
    fetch.main(made)
    assert (asked["repository"], asked["revision"]) == ("someone/gdn-swa", "a" * 40)
    assert {"config.json", "*.safetensors", "model.safetensors.index.json"} <= set(
        asked["allow_patterns"]
    )
    source = json.loads((made.out / "source.json").read_text())
    assert (source["mirror"], source["revision"]) == (None, "a" * 40)


def test_without_the_hub_the_message_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=rf"{WHERE}: cannot fetch .*no route.*`mirror`"):
        fetch.main(job(tmp_path, mirror=None, revision="a" * 40))


def test_a_missing_revision_says_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{WHERE}\.revision: found none; put the commit of some"):
        fetch.main(job(tmp_path, mirror=None))


def test_a_mirror_that_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{WHERE}\.mirror: .*/mirror is not a folder"):
        fetch.main(job(tmp_path))


def test_another_model_than_the_configuration_says_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "mirror")
    spec = {**released_spec(CONFIG), "vocab": None, "hidden": 32}
    spec["layers"] = [[name, dict(options)] for name, options in spec["layers"]]
    spec["layers"][2][1]["window"] = 7
    expected = r"another model than gdn_swa: hidden is 16, expected 32; attention\.window is 6, exp"
    with pytest.raises(UserError, match=expected):
        fetch.main(job(tmp_path, model=spec))


def test_layers_in_another_order_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "mirror")
    spec = {**released_spec(CONFIG), "vocab": None}
    spec["layers"] = spec["layers"][::-1]
    with pytest.raises(UserError, match=r"layers are \['gdn', .*expected \['swiglu'"):
        fetch.main(job(tmp_path, model=spec))


@pytest.mark.parametrize("theirs", [["<unk>", "b", "a"], ["<unk>", "a", "b", "c"]])
def test_another_vocabulary_is_refused(tmp_path: Path, theirs: list[str]) -> None:
    write_checkpoint(tmp_path / "mirror")
    write_tokenizer(tmp_path / "mirror", theirs)
    ours = write_tokenizer(tmp_path / "ours", ["<unk>", "a", "b"])
    with pytest.raises(UserError, match=r"tokenizer\.json: another vocabulary than"):
        fetch.main(job(tmp_path, inputs={"tokenizer": ours}))


def spoil_index(folder: Path, change: dict[str, str]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= change
    path.write_text(json.dumps(index))


def test_a_torn_checkpoint_is_named(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    write_checkpoint(mirror)
    made = job(tmp_path)
    first, second = sorted(mirror.glob("*.safetensors"))

    spoil_index(mirror, {"model.more.weight": first.name})
    with pytest.raises(UserError, match=r"index\.json: .* not there: model\.more\.weight; not in"):
        fetch.main(made)
    spoil_index(mirror, {"model.more.weight": "../elsewhere.safetensors"})
    with pytest.raises(UserError, match=r"weight_map: found '\.\./elsewhere.*allowed: file names"):
        fetch.main(made)
    write_checkpoint(mirror)
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"00002-of-00002\.safetensors: not a readable safetensors"):
        fetch.main(made)
    second.unlink()
    with pytest.raises(UserError, match=r"00002-of-00002\.safetensors: not a readable safetensors"):
        fetch.main(made)
    (mirror / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"mirror: found neither model\.safetensors nor"):
        fetch.main(made)
    (mirror / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: found no file"):
        fetch.main(made)


GDN = {
    "model_type": "gated_deltanet",
    "num_hidden_layers": 24,
    "conv_size": 4,
    "expand_v": 1,
    "initializer_range": 0.006,
    "num_heads": 8,
}
SIZES: dict[str, dict[str, Any]] = {
    "lte-0.4b": {"hidden_size": 1024, "head_dim": 128, "tie_word_embeddings": True},
    "lte-1.4b": {"hidden_size": 2048, "head_dim": 256, "tie_word_embeddings": False},
}
HEADS = {
    "lte-0.4b": {"num_heads": 16, "num_kv_heads": 16},
    "lte-1.4b": {"num_heads": 32, "num_kv_heads": 8},
}
ODD = {"layers": list(range(1, 24, 2)), "qkv_bias": False, "rope_theta": 10000.0}
LTE = {
    "attn_type": "lte",
    "window_size": 768,
    "conv_size": [3, 3, 3],
    "conv_dilation": [2, 2, 2],
    "dropout_prob": 0.1,
    "buffer_size": 512,
    "sink_size": 4,
    "routing_method": "sigmoid",
    "routing_grad": True,
    "routing_shared": "head",
}
NSA = {"num_heads": 32, "num_kv_heads": 2, "head_dim": 64, "block_size": 64, "block_counts": 16}
HYBRIDS = {
    "gdn_swa": ("gated_deltanet", {"window_size": 1024}),
    "gdn_attn": ("gated_deltanet", {"window_size": None}),
    "gdn_nsa": ("hybrid_gated_deltanet", {"attn_type": "nsa", "window_size": 512} | NSA),
    "gdn_lte": ("hybrid_gated_deltanet", LTE),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", HYBRIDS)
def test_the_papers_configurations_are_our_models_at_the_papers_sizes(
    size: str, variant: str
) -> None:
    family, options = HYBRIDS[variant]
    config = GDN | SIZES[size] | {"model_type": family, "attn": ODD | HEADS[size] | options}
    library = Library(WORKFLOW)
    ours = model_spec(library.model(variant, ""), library.size(size, ""), "model", "size")
    found = released_spec(config)
    assert fetch.differences(ours, found) == ""
    assert found["init_std"] == ours["init_std"]
    assert found["vocab"] == 32_000


def test_every_released_variant_has_a_source_of_its_size() -> None:
    for name, study in Library(WORKFLOW).scale("released", "").studies.items():
        assert set(study.released) == set(study.variants)
        size = "1.4B-30B" if name.endswith("1.4b") else "0.4B-10B"
        for variant, source in study.released.items():
            kind = variant.removeprefix("gdn_")
            assert source.repository == f"Idiap/gated-deltanet-{kind}-{size}"


SCALE = """
description: weights that others trained
seeds: [7]
studies:
  language:
    paper: lte
    title: Language
    size: micro
    variants: [gdn, gdn_lte]
    tasks: [micro-perplexity]
    train: {steps: 2}
    data: [{dataset: micro-tokens, options: {length: 32}}]
    released:
      gdn_lte: {repository: someone/lte, tokenizer: micro-bpe}
"""


def plan(tmp_path: Path, scale: str) -> Plan:
    folder = tmp_path / "workflow" / "config"
    shutil.copytree(WORKFLOW, folder)
    shutil.copytree(MICRO, folder, dirs_exist_ok=True)
    (folder / "scales" / "mine.yaml").write_text(scale)
    return load_plan({"scale": "mine", "papers": ["lte"]}, folder)


def test_a_study_may_train_one_variant_and_fetch_another(tmp_path: Path) -> None:
    found = plan(tmp_path, SCALE)
    trained, fetched = (
        found.jobs[f"results/mine/language/{variant}/seed7/train"] for variant in ("gdn", "gdn_lte")
    )
    assert (trained.request["stage"], fetched.request["stage"]) == ("train", "fetch")
    assert fetched.upstream == ("data/built/micro-bpe",)
    assert fetched.request["spec"].keys() == {"model", "repository", "revision", "mirror"}
    roots = fetched.request["code_roots"]
    assert roots[0] == "forgetmenot.cli.fetch"
    assert "forgetmenot.mixers.lte" in roots
    evaluate = found.jobs["results/mine/language/gdn_lte/seed7/micro-perplexity"]
    assert evaluate.request["inputs"]["model"] == "results/mine/language/gdn_lte/seed7/train"
    report = found.jobs[found.target].request["spec"]
    assert set(report["trains"]) == {"language/gdn/seed7", "language/gdn_lte/seed7"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tokenizer: micro-bpe", "revision: main", "released.gdn_lte.revision: found 'main'"),
        ("gdn_lte: {", "rwkv4: {", "studies.language.released: found 'rwkv4'; allowed: gdn, gdn_l"),
        ("tokenizer: micro-bpe", "tokenizer: bpe", "released.gdn_lte.tokenizer: found 'bpe'; allo"),
        (
            "    data: [{dataset: micro-tokens, options: {length: 32}}]\n",
            "",
            "studies.language: data: found nothing to train gdn on",
        ),
        ("tasks:", "train_overrides: {gdn_lte: {}}\n    tasks:", "found 'gdn_lte'; allowed: gdn"),
    ],
)
def test_a_fault_in_the_configuration_is_named(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in SCALE
    with pytest.raises(UserError) as caught:
        plan(tmp_path, SCALE.replace(old, new))
    assert message in str(caught.value)
