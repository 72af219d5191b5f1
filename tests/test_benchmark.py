"""Benchmarks: they run, say what they measure, and see a copy of the whole cache."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from forgetmenot.benchmark import decode
from forgetmenot.benchmark._trace import Touch, Trace, read, record
from forgetmenot.cli import benchmark

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


def test_benchmarks_are_the_files_of_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert "decode" in benchmark.benchmarks()
    assert benchmark.main([]) == 0
    assert "decode: Time and memory of one decoding step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decoding"], "benchmark: found 'decoding'; allowed:\n  decode"),
        (["decode", "--repeats", "0"], "repeats: found 0; allowed: 1 or more"),
        (["decode", "--contexts", "5", "-1"], "contexts: found -1; allowed: 1 or more"),
        (["decode", "--size", "huge"], "size (or 0.4B, 1.4B): found 'huge'; allowed: "),
        (["decode", "--variant", "lte"], "variant: found 'lte'; allowed: gdn"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert benchmark.main(arguments) == 2
    assert message in capsys.readouterr().err
