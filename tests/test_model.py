"""The language model over real mixers: cuts, padding, saving, initialisation, errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetmenot.errors import UserError
from forgetmenot.model import build, load, load_weights, save

FFN = ["swiglu", {"width": 32}]
GDN = ["gdn", {"heads": 2, "key_dim": 8, "value_dim": 8}]
HEADS = {"heads": 2, "kv_heads": 1, "head_dim": 8}
LTE = {**HEADS, "window": 7, "sink": 1, "budget": 5}
NSA = {"block": 4, "selected": 3, "window": 5}
PATTERNS: dict[str, list[Any]] = {
    "transformer": [["attention", HEADS], FFN],
    "gdn": [GDN, FFN],
    "gdn_swa": [GDN, FFN, ["attention", {**HEADS, "window": 6}], FFN],
    "gdn_attn": [GDN, FFN, ["attention", HEADS], FFN],
    "gdn_lte": [GDN, FFN, ["lte", LTE], FFN] * 2,  # two layers, which must not share a state
    "gdn_lte_shared": [["lte", {**LTE, "router_shared": "all"}], FFN] * 2,
    "gdn_nsa": [GDN, FFN, ["nsa", {**HEADS, **NSA}], FFN] * 2,
    "nsa": [["nsa", {**HEADS, **NSA}], FFN] * 2,
    "rwkv4": [["rwkv4_time", {}], ["rwkv4_channel", {"width": 32}]] * 2,
}


def spec(variant: str, **changes: Any) -> dict[str, Any]:
    """A small model spec."""
    return {
        "hidden": 16,
        "vocab": 31,
        "layers": PATTERNS[variant],
        "norm": "layernorm" if variant == "rwkv4" else "rmsnorm",
        "norm_eps": 1e-6,
        "tie_embeddings": True,
        "init_std": None,
        "prosg": None,
        **changes,
    }


@pytest.mark.parametrize("variant", PATTERNS)
def test_packed_documents_then_steps(variant: str) -> None:
    """Documents packed into a row, then stepped, equal each of them alone."""
    model = build(spec(variant)).double().eval()
    model.init_parameters(1)
    lengths, more = [25, 1, 11, 2], torch.randint(31, (4, 15))
    documents = torch.randint(31, (1, sum(lengths))).split(lengths, 1)
    borders = torch.tensor([0, *lengths]).cumsum(0)
    with torch.no_grad():
        out = model(torch.cat(documents, 1), cu_seqlens=borders)
        packed, steps = out.logits_BLV, []
        for token_B in more.unbind(1):
            out = model(token_B[:, None], out.state)
            steps.append(out.logits_BLV)
        for n, document in enumerate(documents):
            whole = model(torch.cat((document, more[n : n + 1]), 1)).logits_BLV
            end = lengths[n]
            first = packed[:, borders[n] : borders[n + 1]]
            torch.testing.assert_close(first, whole[:, :end], rtol=1e-9, atol=1e-9)
            after = torch.cat(steps, 1)[n : n + 1]
            torch.testing.assert_close(after, whole[:, end:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", PATTERNS)
def test_prompt_in_a_padded_batch_then_steps(variant: str) -> None:
    """A left-padded batch, prefilled and then stepped, equals each sequence in one pass."""
    model = build(spec(variant)).double().eval()
    model.init_parameters(1)
    ids = torch.randint(31, (3, 40))
    tokens = [25, 11, 1]
    mask = torch.stack([torch.arange(25) >= 25 - n for n in tokens])
    out = model(ids[:, :25], mask_BL=mask)
    logits = [out.logits_BLV[:, -1:]]
    for t in range(25, 40):
        out = model(ids[:, t : t + 1], out.state)
        logits.append(out.logits_BLV)
    joined = torch.cat(logits, 1)
    for b, n in enumerate(tokens):
        alone = model(ids[b : b + 1, 25 - n :]).logits_BLV[:, n - 1 :]
        torch.testing.assert_close(joined[b : b + 1], alone, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("variant", ["gdn_lte", "rwkv4"])  # RMS and layer norm before the head
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_logits_to_keep_are_the_last_ones(variant: str, tied: bool, padded: bool) -> None:
    model = build(spec(variant, tie_embeddings=tied)).double().eval()
    model.init_parameters(1)
    torch.nn.init.normal_(model.final_norm.weight)
    if variant == "rwkv4":
        torch.nn.init.normal_(model.final_norm.bias)  # would show at padding
    ids = torch.randint(31, (3, 9))
    mask = torch.arange(9) >= torch.tensor([[0], [5], [8]]) if padded else None
    whole = model(ids, mask_BL=mask)
    for count in (1, 3, 9, 20):
        kept = model(ids, mask_BL=mask, logits_to_keep=count)
        torch.testing.assert_close(kept.logits_BLV, whole.logits_BLV[:, -count:])
    step = torch.randint(31, (3, 1))
    after = model(step, kept.state).logits_BLV
    torch.testing.assert_close(after, model(step, whole.state).logits_BLV)
    with pytest.raises(ValueError, match="logits_to_keep: found -1; allowed: 0 or more"):
        model(ids, logits_to_keep=-1)


def test_the_head_runs_on_kept_positions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(spec("gdn", layers=[])).eval()
    sizes = []
    linear = torch.nn.functional.linear

    def counted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        sizes.append(x.shape[:2].numel())
        return linear(x, weight)

    monkeypatch.setattr("forgetmenot.model.F.linear", counted)
    mask = torch.arange(9) >= torch.tensor([[4], [0]])
    model(torch.ones(2, 9, dtype=torch.long), mask_BL=mask, logits_to_keep=1)
    assert sizes == [2]


@pytest.mark.parametrize("variant", PATTERNS)
@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded_is_the_same_model(variant: str, tied: bool, tmp_path: Path) -> None:
    model = build(spec(variant, tie_embeddings=tied)).eval()
    save(model, tmp_path)
    ids = torch.randint(31, (2, 9))
    assert torch.equal(load(tmp_path)(ids).logits_BLV, model(ids).logits_BLV)
    assert (model.head is None) == tied


def test_initialisation_is_a_function_of_the_seed() -> None:
    first, second = build(spec("gdn_lte")), build(spec("gdn_lte"))
    state = torch.get_rng_state()
    first.init_parameters(3)
    second.init_parameters(3)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    second.init_parameters(4)
    assert not torch.equal(first.embed.weight, second.embed.weight)


@pytest.mark.parametrize("variant", PATTERNS)
def test_meta_model_is_wholly_initialised(variant: str) -> None:
    with torch.device("meta"):
        model = build(spec(variant, tie_embeddings=False))
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.init_parameters(0)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_truncated_weights_are_refused_by_name(tmp_path: Path) -> None:
    model = build(spec("gdn"))
    save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors: not these weights"):
        load(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save(build(spec("gdn")), tmp_path)
    with pytest.raises(UserError, match="not these weights"):
        load_weights(build(spec("transformer")), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({})[:-1])
    with pytest.raises(UserError, match=r"config\.json: not a readable model spec"):
        load(tmp_path)


def test_unknown_mixer_names_the_allowed_ones() -> None:
    with pytest.raises(UserError, match=r"found 'ltee'; allowed: attention, .*gdn, lte"):
        build(spec("gdn", layers=[["ltee", {}]]))
