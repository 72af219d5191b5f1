"""Benchmarks of training and prefill: what they measure, of which models, and what they refuse."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forgetmenot import cost
from forgetmenot.benchmark import _models, train
from forgetmenot.cli import benchmark

SIZE = ("--size", "recall-2l-d64", "--vocab", "64", "--device", "cpu")
STEPS = ("--length", "32", "--tokens-per-step", "128", "--steps", "4", "--warmup", "1")
TRAIN = ("train", *SIZE, *STEPS, "--precision", "fp32")
PREFILL = ("prefill", *SIZE, "--contexts", "16", "8", "--repeats", "1", "--dtype", "float32")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert benchmark.main([*arguments, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def saved_specs(path: Path, *names: str) -> Path:
    assert benchmark.main([*TRAIN, "--models", *names, "--save-specs", str(path)]) == 0
    return path


def test_training_steps_have_times_ratios_and_losses(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    curve = tmp_path / "new" / "curve.jsonl"
    names = ("gdn_lte", "transformer")
    found = run(capsys, *TRAIN, "--batch", "2", "--models", *names, "--curve", str(curve))
    assert {"date", "versions", "git"} <= set(found)
    assert (found["options"]["device"], found["ceiling_tflops"]) == ("cpu", None)
    lte, transformer = found["rows"]
    assert [row["model"] for row in found["rows"]] == list(names)
    for row in found["rows"]:
        low, high = row["ms_quartiles"]
        assert 0 < low <= row["ms_per_step"] <= high
        assert row["tokens_per_second"] == pytest.approx(128e3 / row["ms_per_step"])
        assert row["mfu"] is row["peak_bytes"] is None
    assert transformer["ratio"] == 1
    assert lte["ratio"] == lte["tokens_per_second"] / transformer["tokens_per_second"]
    assert 0 < lte["kept_tokens"] <= 32
    assert transformer["kept_tokens"] is None
    lines = [json.loads(line) for line in curve.read_text().splitlines()]
    assert [(x["model"], x["step"]) for x in lines] == [(n, s) for n in names for s in range(1, 5)]
    assert [lines[0]["loss"], lines[3]["loss"]] == [lte["first_loss"], lte["last_loss"]]


def test_how_many_sequences_go_at_once_leaves_the_losses_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Micro-batches draw tokens of their own, so what is compared is one data set's mean loss."""
    folder = token_folder(tmp_path / "tokens", np.zeros(200))
    common = (*TRAIN, "--models", "gdn", "--data", str(folder))
    whole, split = (run(capsys, *common, *more)["rows"][0] for more in ((), ("--batch", "1")))
    assert split["last_loss"] == pytest.approx(whole["last_loss"], rel=1e-4)
    assert whole["last_loss"] < whole["first_loss"]


def token_folder(folder: Path, tokens: Any) -> Path:
    """A built token folder whose training split has these tokens, of a vocabulary of 50."""
    folder.mkdir()
    np.asarray(tokens, "<u2").tofile(folder / "train-00000.bin")
    shards = [{"file": "train-00000.bin", "tokens": len(tokens)}]
    meta = {"vocab_size": 50, "dtype": "uint16", "splits": {"train": {"shards": shards}}}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def test_a_vocabulary_smaller_than_the_data_needs_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = token_folder(tmp_path / "tokens", range(50))
    assert benchmark.main([*TRAIN, "--data", str(folder), "--vocab", "49"]) == 2
    assert "vocab: found 49; allowed: at least 50" in capsys.readouterr().err


def test_flops_are_those_of_the_cost_table_over_the_whole_sequence(tmp_path: Path) -> None:
    specs = json.loads(saved_specs(tmp_path / "specs.json", "gdn_nsa").read_text())
    (spec,) = specs.values()
    of = cost.of(spec, range(32)).flops_per_token
    assert _models.flops_per_token(_models.build(spec, "meta"), 32) == sum(of.values()) / 32


def test_utilisation_is_three_forward_passes_over_the_ceiling() -> None:
    rows: list[dict[str, Any]] = [
        {"model": "transformer", "tokens_per_second": 1e5, "flops_per_token": 2e9},
        {"model": "gdn", "error": "out of memory: much"},
    ]
    train._compare(rows, ceiling=800.0)
    assert rows[0]["mfu"] == pytest.approx(2e14 / 8e14)
    assert (rows[1]["mfu"], rows[1]["ratio"]) == (None, None)
    assert train.BACKWARD == 3


def test_prefill_has_a_row_for_each_model_batch_and_context(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = run(capsys, *PREFILL, "--batch", "2", "1", "--models", "gdn_lte", "transformer")
    at = [(row["model"], row["batch"], row["context"]) for row in found["rows"]]
    assert at == [(n, b, c) for n in ("gdn_lte", "transformer") for b in (1, 2) for c in (8, 16)]
    baseline = {
        (b, c): row for (n, b, c), row in zip(at, found["rows"], strict=True) if n[0] == "t"
    }
    for row in found["rows"]:
        tokens = row["batch"] * row["context"]
        assert row["tokens_per_second"] == pytest.approx(1e3 * tokens / row["ms"])
        other = baseline[row["batch"], row["context"]]
        assert row["ratio"] == row["tokens_per_second"] / other["tokens_per_second"]


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("too much\nof it")


@pytest.mark.parametrize(
    ("command", "broken"),
    [
        (TRAIN, "forgetmenot.train.loop.Trainer.run"),
        (PREFILL, "forgetmenot.benchmark.prefill._read"),
    ],
)
def test_a_model_that_does_not_fit_leaves_the_others_their_numbers(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    broken: str,
) -> None:
    monkeypatch.setattr(broken, out_of_memory)
    assert benchmark.main([*command, "--models", "gdn", "transformer"]) == 0
    text = capsys.readouterr().out
    assert text.count("out of memory: too much\n") == (2 if command is TRAIN else 4)


def test_specs_stand_for_the_configuration_and_what_reads_it(tmp_path: Path) -> None:
    """The machine that measures may have torch, accelerate and little else."""
    path = saved_specs(tmp_path / "specs.json", "gdn", "transformer")
    commands = [[*command, "--specs", str(path), "--models", "gdn"] for command in (TRAIN, PREFILL)]
    lacking = ["pydantic", "snakemake", "mlflow", "datasets", "lm_eval"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({lacking}))\n"
        "from forgetmenot.cli import benchmark\n"
        f"sys.exit(max(benchmark.main(command) for command in {commands}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\ngdn ") == 1 + 2  # prefill has a line a context
    assert "\ntransformer " not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*TRAIN, "--models", "lte"), "variant: found 'lte'; allowed: "),
        ((*TRAIN, "--size", "huge"), "size (or 0.4B, 1.4B): found 'huge'; allowed: "),
        ((*TRAIN, "--specs", "none.json"), "none.json: not readable specs of models"),
        ((*TRAIN, "--specs", "a", "--save-specs", "b"), "save-specs: found beside specs"),
        ((*TRAIN, "--steps", "1"), "steps: found 1; allowed: more than warmup = 1"),
        ((*TRAIN, "--length", "48"), "tokens-per-step: found 128; allowed: multiples of length"),
        ((*TRAIN, "--batch", "3"), "batch: found 3; allowed: divisors of a step's 4"),
        ((*TRAIN, "--batch", "0"), "batch: found 0; allowed: divisors of a step's 4"),
        ((*TRAIN, "--warmup", "0"), "warmup: found 0; allowed: 1 or more"),
        ((*TRAIN, "--data", "none"), "none: not a built token folder"),
        ((*PREFILL, "--models", "lte"), "variant: found 'lte'; allowed: "),
        ((*PREFILL, "--batch", "2", "0"), "batch: found 0; allowed: 1 or more"),
        ((*PREFILL, "--chunk", "0"), "chunk: found 0; allowed: 1 or more"),
        ((*PREFILL, "--vocab", "0"), "vocab: found 0; allowed: 1 or more"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert benchmark.main(list(arguments)) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_model_among_specs_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = saved_specs(tmp_path / "specs.json", "gdn", "nsa")
    assert benchmark.main([*TRAIN, "--specs", str(path), "--models", "gnd"]) == 2
    assert "models: found 'gnd'; allowed: gdn, nsa" in capsys.readouterr().err


@pytest.mark.gpu
def test_peak_memory_and_utilisation_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, *TRAIN, "--models", "transformer", "--device", "cuda")
    (row,) = found["rows"]
    assert row["peak_bytes"] > 4 * 4 * row["parameters"]  # weights, gradients and two averages
    expected = row["tokens_per_second"] * row["flops_per_token"] / found["ceiling_tflops"] / 1e12
    assert row["mfu"] == pytest.approx(expected)
