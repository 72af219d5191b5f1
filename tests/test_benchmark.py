"""Benchmarks: they run, say what they measure, and see a copy of the whole cache."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetmenot import provenance
from forgetmenot.benchmark import _kernel_tests, _kernel_timing, decode, kernels
from forgetmenot.benchmark._trace import Touch, Trace, read, record
from forgetmenot.cli import benchmark
from forgetmenot_kernels.registry import OPS, op_named

CACHE = torch.zeros(1000, 100)
BYTES = CACHE.numel() * 4


def traced(call: Callable[[], object]) -> Trace:
    def dropped() -> None:
        call()

    return record(dropped, "cpu")


@pytest.mark.parametrize(
    ("call", "operator"),
    [
        (lambda: CACHE.clone(), "aten::clone"),
        (lambda: CACHE.t().contiguous(), "aten::contiguous"),
        (lambda: torch.cat((CACHE[1:], CACHE[:1])), "aten::cat"),
        (lambda: CACHE.copy_(torch.zeros(1, 100)), "aten::copy_"),
        (lambda: CACHE * 2, "aten::mul"),
    ],
)
def test_a_copy_of_the_whole_cache_is_seen(call: Callable[[], object], operator: str) -> None:
    (largest, *others) = traced(call).touches
    assert largest.name.startswith(operator)
    assert (largest.bytes, largest.times) == (BYTES, 1)
    assert all(touch.bytes < BYTES for touch in others)


def test_reading_the_cache_and_writing_a_row_are_no_copies() -> None:
    def step() -> None:
        CACHE[3].copy_(CACHE[4])
        CACHE[:, :1].mul_(2)
        CACHE.index_copy_(0, torch.tensor([1]), torch.ones(1, 100))
        CACHE @ torch.ones(100)

    trace = traced(step)
    assert trace.touches[0].bytes == 4000  # the product: one number for each row
    assert trace.net == 0


def test_growth_at_the_peak_and_at_the_end() -> None:
    kept = []

    def grow() -> None:
        kept.append(torch.empty(500))
        torch.empty(1000)

    trace = traced(grow)
    assert (trace.peak, trace.net) == (6000, 2000)


def test_only_the_memory_of_the_device_counts() -> None:
    def memory(ts: float, size: int, device_type: int) -> dict[str, Any]:
        return {"name": "[memory]", "ts": ts, "args": {"Bytes": size, "Device Type": device_type}}

    def op(name: str, ts: float, dur: float) -> dict[str, Any]:
        return {"name": name, "cat": "cpu_op", "ts": ts, "dur": dur, "args": {}}

    events = [
        memory(6.0, -64, 1),
        memory(2.5, 64, 1),
        memory(2.6, 1000, 0),
        op("aten::empty", 2.0, 1.0),
        op("aten::clone", 1.0, 3.0),
        {"name": "kernel", "cat": "kernel", "ts": 3.0, "dur": 9.0, "args": {}},
    ]
    assert read(events, 1) == Trace(64, 0, [Touch("aten::clone > aten::empty", 64, 1)])


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few traced steps: a trace takes long to read."""
    monkeypatch.setattr(decode, "TRACED", 2)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    common = ["decode", "--repeats", "2", "--format", "json"]
    assert benchmark.main([*common, *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_lte_steps_copy_no_cache_and_leave_memory_as_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = run(capsys, "--contexts", "40", "--profile")
    assert found["device"] == "cpu"
    assert {"date", "versions", "ratio"} <= set(found)
    (at,) = found["contexts"]
    assert at["traced_steps"] == 33  # with one in which the scorer runs
    assert at["whole_cache_operators"] == 0
    assert at["net_growth_bytes"] == 0
    assert 0 < at["peak_growth_bytes"] < at["largest_state_tensor_bytes"]
    assert at["largest_operators"][0]["bytes"] > 0


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(("variant", "grows"), [("gdn_lte", False), ("transformer", True)])
def test_only_the_state_of_full_attention_grows(
    capsys: pytest.CaptureFixture[str], variant: str, grows: bool
) -> None:
    size = ("--variant", variant, "--size", "language-2l-d64")
    short, long = run(capsys, *size, "--contexts", "900", "40")["contexts"]
    assert (short["context"], long["context"]) == (40, 900)
    ratio = long["state_bytes"] / short["state_bytes"]
    assert ratio > 4 if grows else ratio == 1
    assert "whole_cache_operators" not in long


@pytest.mark.usefixtures("brief")
def test_the_table_has_a_line_for_each_context(capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--variant", "gdn", "--size", "recall-2l-d64")
    contexts = ("--contexts", "3", "1003", "--repeats", "1", "--profile")
    assert benchmark.main(["decode", *size, *contexts]) == 0
    text = capsys.readouterr().out
    assert "gdn at recall-2l-d64" in text
    assert [line.split()[0] for line in text.splitlines()[2:4]] == ["3", "1,003"]


def windowed(folder: Path) -> str:
    """The file of a small model's spec."""
    layers = [["attention", {"heads": 2, "kv_heads": 2, "head_dim": 16, "window": 4}]]
    spec = {
        "hidden": 32, "vocab": None, "layers": layers, "norm_eps": 1e-6, "tie_embeddings": True,
        "init_std": None, "prosg": None,
    }  # fmt: skip
    path = folder / "mine.json"
    path.write_text(json.dumps(spec))
    return str(path)


@pytest.mark.usefixtures("brief")
def test_a_spec_stands_for_variant_and_size_and_needs_no_configuration(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "forgetmenot.variants", None)  # its import fails
    found = run(capsys, "--spec", windowed(tmp_path), "--window", "6", "--contexts", "3")
    assert found["options"]["variant"] == "mine"
    assert found["contexts"][0]["largest_state_tensor_bytes"] == 4 * 6 * 32


@pytest.mark.gpu
def test_a_step_as_cuda_graphs_lists_its_kernels(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spec = ("--spec", windowed(tmp_path))
    found = run(capsys, *spec, "--contexts", "40", "--graph", "--profile")
    (at,) = found["contexts"]
    assert found["options"]["graph"]
    assert at["net_growth_bytes"] == 0
    assert sum(kernel["launches"] for kernel in at["kernels"]) > at["traced_steps"]


def test_the_result_can_be_written_beside_the_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "TRACED", 1)
    size = ("--variant", "gdn", "--size", "recall-2l-d64", "--contexts", "3", "--repeats", "1")
    assert benchmark.main(["decode", *size, "--out", str(tmp_path / "new" / "found.json")]) == 0
    assert "gdn at recall-2l-d64" in capsys.readouterr().out
    found = json.loads((tmp_path / "new" / "found.json").read_text())
    assert (found["benchmark"], found["contexts"][0]["context"]) == ("decode", 3)


def test_benchmarks_are_the_files_of_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(benchmark.benchmarks()) == ["decode", "kernels", "prefill", "train"]
    assert benchmark.main([]) == 0
    assert "decode: Time and memory of one decoding step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decoding"], "benchmark: found 'decoding'; allowed:\n  decode"),
        (["decode", "--repeats", "0"], "repeats: found 0; allowed: 1 or more"),
        (["decode", "--contexts", "5", "-1"], "contexts: found -1; allowed: 1 or more"),
        (["decode", "--size", "huge"], "size (or 0.4B, 1.4B): found 'huge'; allowed: "),
        (["decode", "--variant", "lte"], "variant: found 'lte'; allowed: "),
        (["decode", "--device", "cpu", "--graph"], "graph: found device cpu; allowed: cuda"),
        (["decode", "--spec", "none.json"], "none.json: not a readable model spec"),
        (["decode", "--spec", "none.json", "--size", "1.4B"], "spec: found beside a size"),
        (["kernels", "--op", "wkv"], "op: found 'wkv'; allowed: lte_attention, "),
        (["kernels", "--repeats", "2"], "repeats: found 2; allowed: 3 or more"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert benchmark.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_kernels_are_timed_on_cuda_devices_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(["kernels"]) == 2
    assert "error: device: found no CUDA device; this benchmark" in capsys.readouterr().err


def test_timing_kernels_needs_torch_and_triton_alone() -> None:
    """Of what is installed here, the machine of a kernel's author may have nothing else."""
    lacking = [
        "pydantic",
        "snakemake",
        "mlflow",
        "datasets",
        "lm_eval",
        "transformers",
        "pandas",
        "accelerate",
    ]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({lacking}))\n"
        "from forgetmenot.cli import benchmark\n"
        "sys.exit(benchmark.main(['kernels', '--op', 'none']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "error: op: found 'none'" in done.stderr


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of `benchmark kernels` but the times: the CPU in place of a device, and tiny shapes."""
    for name, value in {
        "is_available": lambda: True,
        "get_device_name": lambda: "no device",
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)

    def called(call: Callable[[], object], repeats: int) -> list[float]:
        call()
        return [2.0, 1.0, 3.0]

    def out_of_memory(inputs: object) -> None:
        raise torch.OutOfMemoryError("too much\nof it")

    monkeypatch.setattr(_kernel_timing, "DEVICE", "cpu")
    monkeypatch.setattr(_kernel_timing, "ceilings", lambda repeats: {"tflops": 1e-3, "tbs": 1e-6})
    monkeypatch.setattr(_kernel_timing, "milliseconds", called)
    monkeypatch.setattr(_kernel_timing, "graphed", lambda call: call)
    monkeypatch.setattr(_kernel_timing, "dense_attention", lambda q, k, v: q + k.sum() + v.sum())
    monkeypatch.setattr(_kernel_timing, "flex_attention", out_of_memory)
    ops = []
    for op in OPS:
        tiny = op.shapes["tiny"]
        names = ("b4-t4096",) if "time" in tiny else ("b1-c1024", "b1-c32768")
        ops.append(dataclasses.replace(op, shapes=dict.fromkeys(("tiny", *names), tiny)))
    monkeypatch.setattr(kernels, "OPS", ops)
    monkeypatch.setattr(kernels, "op_named", {op.name: op for op in ops}.__getitem__)


@pytest.mark.usefixtures("no_device")
def test_every_operator_is_timed_counted_and_judged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = {"wkv4": "its tests failed"}
    monkeypatch.setattr(_kernel_tests, "missing", lambda op, stamps: refused.get(op.name))
    assert benchmark.main(["kernels", "--format", "json", "--first-call"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["op"], row["shape"], row["pass"]): row for row in found["rows"]}
    assert {name for name, *_ in rows} == {op.name for op in OPS} - {"wkv4"}
    assert found["refused"] == refused
    assert found["first_calls"].keys() == {"gated_delta_rule"}
    assert found["first_calls"]["gated_delta_rule"]["seconds"] > 0
    forward = rows["gated_delta_rule", "b4-t4096", "forward"]
    both = rows["gated_delta_rule", "b4-t4096", "forward+backward"]
    assert (forward["met"], forward["target"], both["target"]) == (False, 0.4, 1.6)
    assert set(forward) >= {"ours", "plain", "dense"}
    assert forward["tflops"] == pytest.approx(forward["flops"] / 2e-3 / 1e12)
    assert forward["tbs_share"] == pytest.approx(forward["bytes"] / 2e-3 / 1e12 / 1e-6)
    assert both["flops"] == 3 * forward["flops"]
    assert "flex" not in rows["lte_attention", "b4-t4096", "forward"]
    step = rows["lte_decode_step", "b1-c32768", "stack of steps"]
    assert (step["met"], step["target"]) == (True, 2.1)
    assert rows["wkv4_step", "b1-c1024", "stack of steps"]["met"] is None
    text = kernels.table(found)
    assert "flex: no time: OutOfMemoryError: too much\n" in text
    assert "wkv4: not shown: its tests failed" in text
    assert "first call of gated_delta_rule, compilation included: 0" in text


@pytest.mark.usefixtures("no_device")
def test_no_figure_without_gpu_tests_that_passed_in_this_state(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ("wkv4", "wkv7", "retention", "short_conv")
    bodies = ("assert True", "assert False", "pytest.skip()", "")
    folder = tmp_path / "tests" / "kernels"
    folder.mkdir(parents=True)
    for name, body in zip(names, bodies, strict=True):
        mark = "@pytest.mark.gpu\n" if body else ""
        test = f"import pytest\n{mark}def test(): {body or 'assert True'}\n"
        (folder / f"test_{name}.py").write_text(test)
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    stamps = tmp_path / "stamps"
    command = ["kernels", "--stamps", str(stamps), "--format", "json", "--op", *names]
    assert benchmark.main(command) == 2
    assert "op: no figure may be shown\n  wkv4: its GPU tests have" in capsys.readouterr().err
    assert benchmark.main([*command, "--verify"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["op"] for row in found["rows"]} == {"wkv4"}
    assert set(found["refused"]) == set(names[1:])
    assert benchmark.main(command[:-3]) == 0  # the stamp stays
    op = op_named("wkv4")
    (folder / "test_wkv4.py").write_text("changed")
    assert "changed since its GPU tests passed: tests;" in (_kernel_tests.missing(op, stamps) or "")
    monkeypatch.setattr(torch, "__version__", "0.1")
    assert "passed: tests, torch;" in (_kernel_tests.missing(op, stamps) or "")


@pytest.mark.usefixtures("no_device")
def test_gpu_tests_that_take_too_long_are_stopped_and_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "tests" / "kernels"
    folder.mkdir(parents=True)
    test = "import pytest, time\n@pytest.mark.gpu\ndef test(): time.sleep(3600)\n"
    (folder / "test_wkv7.py").write_text(test)
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    monkeypatch.setattr(_kernel_tests.importlib.util, "find_spec", lambda name: None)
    command = ["kernels", "--op", "wkv7", "--verify", "--verify-limit", "0.5"]
    assert benchmark.main([*command, "--stamps", str(tmp_path / "stamps")]) == 2
    error = capsys.readouterr().err
    assert "verify wkv7: 0 of 1 passed, 0 failed" in error
    assert "wkv7: its GPU tests have not passed here" in error
