"""RWKV-4's released layout: a small made file against a float64 loop, and files that are unfit."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetmenot import model as models
from forgetmenot.cli.import_rwkv4 import main
from forgetmenot.errors import UserError
from forgetmenot.export import export
from forgetmenot.rwkv4_checkpoint import from_checkpoint, read

VOCAB, WIDTH, INNER, BLOCKS = 13, 6, 10, 3
Weights = dict[str, torch.Tensor]


def checkpoint() -> Weights:
    """Random tensors in the names and shapes of a released file."""
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        return torch.randn(*shape, generator=rng) * scale + mean

    def norm(name: str) -> Weights:
        return {f"{name}.weight": draw(WIDTH, scale=0.3, mean=1), f"{name}.bias": draw(WIDTH)}

    # small, so that the norm's epsilon counts
    weights = {"emb.weight": draw(VOCAB, WIDTH, scale=0.01), **norm("blocks.0.ln0")}
    for n in range(BLOCKS):
        weights |= norm(f"blocks.{n}.ln1") | norm(f"blocks.{n}.ln2")
        att, ffn = f"blocks.{n}.att", f"blocks.{n}.ffn"
        for mix in (f"{att}.time_mix_k", f"{att}.time_mix_v", f"{att}.time_mix_r"):
            weights[mix] = torch.rand(1, 1, WIDTH, generator=rng)
        weights |= {f"{att}.time_decay": draw(WIDTH), f"{att}.time_first": draw(WIDTH)}
        for name in ("key", "value", "receptance", "output"):
            weights[f"{att}.{name}.weight"] = draw(WIDTH, WIDTH)
        for mix in (f"{ffn}.time_mix_k", f"{ffn}.time_mix_r"):
            weights[mix] = torch.rand(1, 1, WIDTH, generator=rng)
        weights[f"{ffn}.key.weight"] = draw(INNER, WIDTH)
        weights[f"{ffn}.receptance.weight"] = draw(WIDTH, WIDTH)
        weights[f"{ffn}.value.weight"] = draw(WIDTH, INNER)
    return weights | norm("ln_out") | {"head.weight": draw(VOCAB, WIDTH)}


def layer_norm(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    centred = x - x.mean()
    unit = centred / (centred.square().mean() + 1e-5).sqrt()
    return unit * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def oracle(weights: Weights, tokens: list[int]) -> torch.Tensor:
    """Logits [T, V] by the formulas in float64: a token and a channel's plain sums at a time."""
    w = {name: tensor.double().squeeze() for name, tensor in weights.items()}
    zero = torch.zeros(WIDTH, dtype=torch.float64)
    last_att, last_ffn = [zero] * BLOCKS, [zero] * BLOCKS
    above, below = [zero] * BLOCKS, [zero] * BLOCKS
    logits = []
    for token in tokens:
        x = layer_norm(w["emb.weight"][token], w, "blocks.0.ln0")
        for n in range(BLOCKS):
            att, ffn = f"blocks.{n}.att", f"blocks.{n}.ffn"

            def mixed(part: str, name: str, now: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
                share = w[f"{part}.time_mix_{name}"]
                return now * share + last * (1 - share)

            now = layer_norm(x, w, f"blocks.{n}.ln1")
            r = w[f"{att}.receptance.weight"] @ mixed(att, "r", now, last_att[n])
            k = w[f"{att}.key.weight"] @ mixed(att, "k", now, last_att[n])
            v = w[f"{att}.value.weight"] @ mixed(att, "v", now, last_att[n])
            extra = (w[f"{att}.time_first"] + k).exp()
            wkv = (above[n] + extra * v) / (below[n] + extra)
            x = x + w[f"{att}.output.weight"] @ (r.sigmoid() * wkv)
            kept = (-w[f"{att}.time_decay"].exp()).exp()
            above[n], below[n] = kept * above[n] + k.exp() * v, kept * below[n] + k.exp()
            last_att[n] = now

            now = layer_norm(x, w, f"blocks.{n}.ln2")
            r = w[f"{ffn}.receptance.weight"] @ mixed(ffn, "r", now, last_ffn[n])
            inner = w[f"{ffn}.key.weight"] @ mixed(ffn, "k", now, last_ffn[n])
            x = x + r.sigmoid() * (w[f"{ffn}.value.weight"] @ inner.clamp(min=0).square())
            last_ffn[n] = now
        logits.append(w["head.weight"] @ layer_norm(x, w, "ln_out"))
    return torch.stack(logits)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "RWKV-4-made.pth"
    torch.save(checkpoint(), path)
    return path


@torch.no_grad()
def test_the_model_computes_the_formulas(file: Path) -> None:
    tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 12, 0, 7, 7]
    expected = oracle(checkpoint(), tokens)
    model = from_checkpoint(read(file)).double()
    ids = torch.tensor([tokens])
    whole = model(ids).logits_BLV[0]
    # what stays is the embedding's rounding to float32 after its norm
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)
    out = model(ids[:, :5])
    steps = [out.logits_BLV[0]]
    for token in ids[0, 5:]:
        out = model(token.view(1, 1), out.state)
        steps.append(out.logits_BLV[0])
    torch.testing.assert_close(torch.cat(steps), whole, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_half_precision_and_squeezed_vectors_are_read() -> None:
    half = {name: x.bfloat16().squeeze() for name, x in checkpoint().items()}
    expected = oracle(half, [3, 1, 4, 1])
    found = from_checkpoint(half).double()(torch.tensor([[3, 1, 4, 1]])).logits_BLV[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_command_s_folder_can_be_loaded_and_exported(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert main([str(file), str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "model.safetensors", "source.json"
    ]  # fmt: skip
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    expected = from_checkpoint(read(file))(ids).logits
    torch.testing.assert_close(models.load(out)(ids).logits, expected, rtol=0, atol=0)
    export(out, None, tmp_path / "exported")
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    assert main([str(file), str(out)]) == 2
    assert "found files there; allowed: a new or an empty folder" in capsys.readouterr().err


class Harmful:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch harmed",)


def pickled(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found damage, or other things than tensors"),
        (b"hello, this is no checkpoint", "found damage, or other things than tensors"),
        (pickled(checkpoint())[:2000], "found damage, or other things than tensors"),
        (pickled({"w": Harmful()}), "found damage, or other things than tensors"),
        (pickled([1, 2]), "found a list with other things than named tensors"),
        (pickled({"model": checkpoint()}), "found a dict with other things than named tensors"),
        (pickled({3: torch.zeros(2)}), "found a dict with other things than named tensors"),
        (pickled({"w": torch.zeros(2)}), "not an RWKV-4 checkpoint: missing emb.weight"),
    ],
)
def test_files_that_are_not_checkpoints_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.pth").write_bytes(content)
    assert main(["bad.pth", "out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: bad.pth: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(os.listdir()) == ["bad.pth"]


def test_a_file_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none.pth"), str(tmp_path / "out")]) == 2
    assert "none.pth: cannot be read (" in capsys.readouterr().err


def without(name: str) -> Callable[[Weights], Any]:
    return lambda weights: weights.pop(name)


def having(name: str, tensor: torch.Tensor) -> Callable[[Weights], Any]:
    return lambda weights: weights.update({name: tensor})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("blocks.1.att.time_first"), r"missing blocks\.1\.att\.time_first \[6\]$"),
        (without("blocks.0.ln0.bias"), r"missing blocks\.0\.ln0\.bias \[6\]$"),
        (without("blocks.0.ffn.key.weight"), r"missing blocks\.0\.ffn\.key\.weight$"),
        (having("tiny_q.weight", torch.zeros(6, 6)), r"unknown tiny_q\.weight$"),
        (having("blocks.7.ln1.bias", torch.zeros(6)), r"missing .*; and \d+ more$"),
        (having("blocks.0.att.ln_x.weight", torch.ones(6)), r"RWKV-5 or later; allowed: RWKV-4$"),
        (having("emb.weight", torch.ones(6)), r"emb\.weight: found shape \[6\]; allowed: a matrix"),
        (having("emb.weight", torch.ones(5, 0)), r"found shape \[5, 0\]; allowed: a matrix"),
        (
            having("blocks.2.att.key.weight", torch.zeros(6, 7)),
            r"att\.key\.weight: found shape \[6, 7\], allowed: \[6, 6\]$",
        ),
        (
            having("blocks.2.att.time_mix_r", torch.zeros(1, 6, 1)),
            r"att\.time_mix_r: found shape \[1, 6, 1\], allowed: \[6\]$",
        ),
        (
            having("ln_out.bias", torch.zeros(6, dtype=torch.long)),
            r"ln_out\.bias: found torch\.int64, torch\.strided, allowed: dense floating point$",
        ),
        (
            having("ln_out.bias", torch.zeros(6).to_sparse()),
            r"ln_out\.bias: found torch\.float32, torch\.sparse_coo, allowed: dense",
        ),
        (
            having("head.weight", torch.full((13, 6), torch.nan)),
            r"head\.weight: found values that are not finite$",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(spoil: Callable[[Weights], Any], message: str) -> None:
    weights = checkpoint()
    spoil(weights)
    with pytest.raises(UserError, match=message) as error:
        from_checkpoint(weights, "mine.pth")
    assert str(error.value).startswith("mine.pth: ")
