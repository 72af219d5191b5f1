"""`lm_eval --model hf` on an exported folder, against our own harness; registration."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, processors

from forgetmenot.data.tokenizer_folder import save_tokenizer
from forgetmenot.evaluate.harness import HarnessModel
from forgetmenot.export import export
from forgetmenot.model import build, load, save

ROOT = Path(__file__).resolve().parents[1]
HEADS = {"heads": 2, "kv_heads": 1, "head_dim": 8}
SPEC = {
    "hidden": 16,
    "vocab": 67,
    "layers": [
        ["gdn", {"heads": 2, "key_dim": 8, "value_dim": 8}],
        ["swiglu", {"width": 32}],
        ["lte", {**HEADS, "window": 7, "sink": 1, "budget": 5}],
    ],
    "norm": "rmsnorm",
    "norm_eps": 1e-6,
    "tie_embeddings": False,
    "init_std": None,
    "prosg": None,
}
TEXT = "A FORGETFUL MODEL READS LONG TEXTS AND KEEPS WHAT A QUESTION MAY NEED"
QUESTIONS = [TEXT[: n + 1] for n in range(0, len(TEXT), 6)]


class Request:
    def __init__(self, *args: Any) -> None:
        self.args = args


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained model, its tokenizer of characters, and both exported."""
    root = tmp_path_factory.mktemp("folders")
    vocab = {token: n for n, token in enumerate(["<s>", "</s>", "<pad>", *map(chr, range(32, 96))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    save_tokenizer(root / "tokenizer", tokenizer, "<s>", "</s>", "<pad>", {})
    model = build(SPEC)
    model.init_parameters(5)
    save(model, root / "model")
    export(root / "model", root / "tokenizer", root / "exported")
    return {name: root / name for name in ("model", "tokenizer", "exported")}


def run(*command: str, path: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, offline, with our packages on its path."""
    places = [path, str(ROOT / "src"), str(ROOT / "kernels")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        **variables,
    }
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )


def tasks(folder: Path) -> None:
    """Two small lm-eval tasks over `QUESTIONS`: log-likelihoods and generation."""
    rows = [{"q": q, "choices": [" MODEL", " TEXT", " A"], "answer": 0} for q in QUESTIONS]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines)
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "doc_to_target": "answer",
    }
    kinds: dict[str, dict[str, Any]] = {
        "choose": {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        },
        "write": {
            "output_type": "generate_until",
            "generation_kwargs": {"until": ["E"], "max_gen_toks": 12, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, kind in kinds.items():
        text = yaml.safe_dump({"task": name, **shared, **kind})
        (folder / f"{name}.yaml").write_text(text)


def installed(folder: Path) -> str:
    """What an installation adds to the path: the package's entry points."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    place = folder / "site" / f"forgetmenot-{project['version']}.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: forgetmenot\nVersion: 0\n")
    groups = project.get("entry-points", {})
    text = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in groups.items()
    )
    (place / "entry_points.txt").write_text(text)
    return str(place.parent)


def test_lm_eval_finds_the_same_as_our_harness(folders: dict[str, Path], tmp_path: Path) -> None:
    tasks(tmp_path)
    done = run(
        *("-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "5"),
        *("--model_args", f"pretrained={folders['exported']}"),
        *("--tasks", "choose,write", "--include_path", str(tmp_path)),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
        path=installed(tmp_path),
        HF_HOME=str(tmp_path / "home"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    harness = HarnessModel(
        load(folders["model"]), folders["tokenizer"], max_length=200, batch_size=4, device="cpu"
    )

    def samples(task: str) -> list[dict[str, Any]]:
        (file,) = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
        return [json.loads(line) for line in file.read_text().splitlines()]

    found, requests = [], []
    for sample in samples("choose"):
        for n, ((response,),) in enumerate(zip(sample["resps"], strict=True)):
            found.append((float(response[0]), response[1] == "True"))
            requests.append(Request(*sample["arguments"][f"gen_args_{n}"].values()))
    expected = harness.loglikelihood(requests)
    assert len(expected) == 3 * len(QUESTIONS)
    assert [value for value, _ in found] == pytest.approx([v for v, _ in expected], rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    texts = {sample["doc"]["q"]: sample["resps"][0][0] for sample in samples("write")}
    options = {"until": ["E"], "max_gen_toks": 12}
    expected_texts = harness.generate_until([Request(q, options) for q in QUESTIONS])
    assert [texts[q] for q in QUESTIONS] == expected_texts
    assert len(set(expected_texts)) > 3


def test_import_is_light_and_registers_with_the_registry() -> None:
    light = "not {'torch', 'transformers', 'forgetmenot.hf_config'} & set(sys.modules)"
    done = run(
        "-W",
        "error::UserWarning",
        "-c",
        f"""
import sys
import forgetmenot
assert {light}
from transformers import CONFIG_MAPPING
assert CONFIG_MAPPING["forgetmenot"].__name__ == "ForgetmenotConfig"
assert "transformers.modeling_utils" not in sys.modules
""",
    )
    assert done.returncode == 0, done.stderr


def test_import_needs_no_transformers() -> None:
    done = run("-c", "import sys; sys.modules['transformers'] = None; import forgetmenot.export")
    assert "ModuleNotFoundError" in done.stderr
    done = run("-c", "import sys; sys.modules['transformers'] = None; import forgetmenot")
    assert done.returncode == 0, done.stderr


def test_registry_first_and_the_folder_finding_the_package(folders: dict[str, Path]) -> None:
    done = run(
        "-W",
        "error::UserWarning",
        "-c",
        f"""
import sys
from transformers import AutoModelForCausalLM
folder = {str(folders["exported"])!r}
assert "forgetmenot" not in sys.modules
found = [AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)]
assert "forgetmenot" in sys.modules
found.append(AutoModelForCausalLM.from_pretrained(folder))
found[0].save_pretrained(folder + "/again")
found.append(AutoModelForCausalLM.from_pretrained(folder + "/again"))
assert [type(model).__name__ for model in found] == ["ForgetmenotForCausalLM"] * 3
""",
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
        HF_HOME=str(folders["exported"] / "home"),
    )
    assert done.returncode == 0, done.stderr
