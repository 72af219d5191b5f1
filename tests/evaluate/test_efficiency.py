"""Efficiency: what is timed, what is counted, and what the rows say; never how long it takes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forgetmenot import model as models
from forgetmenot.errors import UserError
from forgetmenot.evaluate import efficiency
from forgetmenot.evaluate.efficiency import Options, held_out, measure, median

VOCAB = 10


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """Two held-out shards of 30 and 9 tokens."""
    shards = []
    for number, size in enumerate((30, 9)):
        ids = np.arange(100 * number, 100 * number + size) % VOCAB
        file = f"heldout-{number:05d}.bin"
        ids.astype("<u2").tofile(tmp_path / file)
        shards.append({"file": file, "tokens": size})
    meta = {"vocab_size": VOCAB, "dtype": "uint16", "bos_id": 0, "eos_id": 1, "pad_id": 2}
    meta["splits"] = {"heldout": {"shards": shards}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    return tmp_path


def spec(mixer: str, **options: Any) -> dict[str, Any]:
    return {
        "hidden": 8, "vocab": VOCAB, "layers": [[mixer, options], ["swiglu", {"width": 8}]],
        "norm": "rmsnorm", "norm_eps": 1e-6, "tie_embeddings": True, "init_std": None,
        "prosg": None,
    }  # fmt: skip


ATTENTION = spec("attention", heads=2, kv_heads=2, head_dim=4)
WINDOW = spec("attention", heads=2, kv_heads=2, head_dim=4, window=4)


def entries(found: list[dict[str, Any]], name: str) -> dict[tuple[int, int], dict[str, Any]]:
    return {
        (entry["at"]["context"], entry["at"]["batch"]): entry
        for entry in found
        if entry["metric"] == name
    }


def test_rows_have_every_context_and_batch_and_say_on_what(tokens: Path, tmp_path: Path) -> None:
    model = models.build(ATTENTION)
    folder = tmp_path / "model"
    models.save(model, folder)
    options = Options(contexts=[5, 8], batches=[1, 2], prefills=2, blocks=3, steps=2, chunk=3)
    efficiency.evaluate(folder, tokens, options, tmp_path / "out", "cpu")
    metrics = json.loads((tmp_path / "out/results.json").read_text())["metrics"]
    places = {(context, batch) for context in (5, 8) for batch in (1, 2)}
    for name, n in (("prefill_ms", 2), ("decode_ms", 3), ("state_bytes", 1)):
        found = entries(metrics, name)
        assert set(found) == places
        assert {entry["n"] for entry in found.values()} == {n}
    rates = entries(metrics, "decode_tokens_per_second")
    for place, entry in entries(metrics, "decode_ms").items():
        assert entry["value"] > 0
        assert rates[place]["value"] == pytest.approx(1e3 * place[1] / entry["value"])
    texts = {entry["metric"]: entry["value"] for entry in metrics if entry["at"] == {"batch": 2}}
    assert texts["device"] == "cpu"
    assert f"torch {torch.__version__.split('+')[0]}" in texts["versions"]
    assert texts["dtype"] == "float32"
    lines = [json.loads(s) for s in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert len(lines) == len(places) * (2 + 3)


def test_state_bytes_are_those_of_one_sequence_after_the_prompt(tokens: Path) -> None:
    options = Options(contexts=[6, 12], batches=[1, 3], prefills=1, blocks=1, steps=1)
    for layers, grows in ((ATTENTION, True), (WINDOW, False)):
        metrics, _ = measure(models.build(layers).eval(), tokens, options, "cpu")
        state = {place: entry["value"] for place, entry in entries(metrics, "state_bytes").items()}
        assert state[6, 1] == pytest.approx(state[6, 3], rel=0.05)
        assert (state[12, 1] > 1.5 * state[6, 1]) == grows


def test_decoding_goes_on_from_the_prompt(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.build(ATTENTION).eval()
    seen: list[tuple[tuple[int, ...], bool]] = []
    real = model.forward

    def forward(ids: torch.Tensor, state: Any = None) -> Any:
        seen.append((tuple(ids[0].tolist()), state is None))
        return real(ids, state)

    monkeypatch.setattr(model, "forward", forward)
    options = Options(contexts=[5], prefills=1, blocks=1, steps=2, chunk=3)
    measure(model, tokens, options, "cpu")
    row = tuple(held_out(tokens, 1, 5 + 2 * (efficiency.WARMUP + 1))[0].tolist())
    prefill = [(row[:3], True), (row[3:5], False)]
    decoding = [((token,), False) for token in row[5:]]
    assert seen == prefill * (efficiency.WARMUP + 1) + decoding


def test_held_out_rows_start_apart_and_wrap_around(tokens: Path) -> None:
    rows = held_out(tokens, 2, 45)
    assert rows.shape == (2, 45)
    assert rows[0, :30].tolist() == [n % VOCAB for n in range(30)]
    assert rows[0, 39:].tolist() == rows[0, :6].tolist()
    assert rows[1, 0] == 19 % VOCAB


def test_the_median_has_an_error_that_shrinks_with_more_timings() -> None:
    assert median([3.0]) == (3.0, None)
    values = np.random.default_rng(0).normal(10, 1, 400).tolist()
    few, many = median(values[:25])[1], median(values)[1]
    assert few is not None
    assert many is not None
    assert many < few / 2
    assert median([*values[:24], 1e6])[1] == pytest.approx(few, rel=0.2)  # one slow run
    assert many == pytest.approx(1.2533 / 20, rel=0.3)  # of a normal distribution's median


def test_a_bad_option_is_named() -> None:
    for change in ({"contexts": []}, {"contexts": [0]}, {"contexts": [4], "blocks": 0}):
        with pytest.raises(ValueError, match=next(reversed(change))):
            Options(**change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batches: found"):
        Options(contexts=[4], batches=[0])


def test_data_without_held_out_tokens_is_refused(tmp_path: Path) -> None:
    meta = {"vocab_size": 4, "dtype": "uint16", "splits": {"heldout": {"shards": []}}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="no held-out tokens"):
        held_out(tmp_path, 1, 4)


def test_cuda_graphs_are_refused_without_a_gpu(tokens: Path) -> None:
    options = Options(contexts=[5], prefills=1, blocks=1, steps=1, graph=True)
    with pytest.raises(UserError, match="graph: found true on cpu; allowed: on cuda only"):
        measure(models.build(WINDOW).eval(), tokens, options, "cpu")


@pytest.mark.gpu
def test_decoding_as_cuda_graphs_is_timed_and_said(tokens: Path) -> None:
    options = Options(contexts=[5, 8], prefills=1, blocks=2, steps=3, graph=True)
    window = spec("attention", heads=2, kv_heads=2, head_dim=16, window=4)
    metrics, _ = measure(models.build(window).eval().cuda(), tokens, options, "cuda")
    assert all(entry["value"] > 0 for entry in entries(metrics, "decode_ms").values())
    assert {"CUDA graphs"} == {e["value"] for e in metrics if e["metric"] == "decoding"}
    full = spec("attention", heads=2, kv_heads=2, head_dim=16)
    with pytest.raises(UserError, match="graph: layer 0: found the mixer 'attention'"):
        measure(models.build(full).eval().cuda(), tokens, options, "cuda")
