"""A word tokenizer and models with known probabilities: expected scores follow by hand."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

WORDS = ["<s>", "<unk>", "one", "two", "three", "four", "five", "six", "[", "]", "</s>"]


class Output(NamedTuple):
    logits_BLV: torch.Tensor
    state: torch.Tensor


class Trigram(nn.Module):
    """Logits from the current token and the one before it; the state is the last token [B, 1].

    The token before the first one counts as BOS (0). A lost state changes the next prediction.
    """

    def __init__(self, before_VV: torch.Tensor, current_VV: torch.Tensor) -> None:
        super().__init__()
        self.before_VV, self.current_VV = before_VV, current_VV

    def forward(
        self,
        input_ids_BL: torch.Tensor,
        state: torch.Tensor | None = None,
        mask_BL: torch.Tensor | None = None,
        need_state: bool = True,
        logits_to_keep: int = 0,
    ) -> Output:
        first_B1 = torch.zeros_like(input_ids_BL[:, :1]) if state is None else state
        before_BL = torch.cat((first_B1, input_ids_BL[:, :-1]), 1)
        if mask_BL is not None:
            before_BL = before_BL * torch.cat((first_B1.bool(), mask_BL[:, :-1]), 1)
        logits_BLV = self.before_VV[before_BL] + self.current_VV[input_ids_BL]
        return Output(logits_BLV[:, -logits_to_keep:], input_ids_BL[:, -1:])

    @property
    def base(self) -> "Trigram":
        """Itself: a plain model."""
        return self

    def commit_prompt(self, state: torch.Tensor) -> torch.Tensor:
        """The state itself."""
        return state

    def log_probabilities(self, ids: list[int]) -> list[float]:
        """log P of ids[1:], each from its two predecessors, one at a time."""
        found = []
        for place in range(1, len(ids)):
            before = ids[place - 2] if place > 1 else 0
            logits_V = (self.before_VV[before] + self.current_VV[ids[place - 1]]).double()
            found.append(float(logits_V[ids[place]] - logits_V.exp().sum().log()))
        return found

    def continuation(self, ids: list[int], count: int) -> list[int]:
        """The `count` most probable next tokens, one at a time."""
        ids = list(ids)
        for _ in range(count):
            before = ids[-2] if len(ids) > 1 else 0
            ids.append(int((self.before_VV[before] + self.current_VV[ids[-1]]).argmax()))
        return ids[-count:]


@pytest.fixture
def trigram() -> Trigram:
    generator = torch.Generator().manual_seed(0)
    before_VV, current_VV = torch.randn(2, len(WORDS), len(WORDS), generator=generator) * 2
    return Trigram(before_VV, current_VV)


@pytest.fixture
def uniform() -> Trigram:
    zeros = torch.zeros(len(WORDS), len(WORDS))
    return Trigram(zeros, zeros)


@pytest.fixture
def chain() -> Callable[[dict[str, str]], Trigram]:
    """A model that follows each word by one other: `{"one": "two"}`; all else by BOS."""

    def make(follows: dict[str, str]) -> Trigram:
        current_VV = torch.zeros(len(WORDS), len(WORDS))
        current_VV[:, 0] = 1
        for word, follower in follows.items():
            current_VV[WORDS.index(word), WORDS.index(follower)] = 2
        return Trigram(torch.zeros_like(current_VV), current_VV)

    return make


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A folder with a tokenizer: one token a word of WORDS, BOS in front."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    model = models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    folder = tmp_path / "data"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    meta = {"vocab_size": len(WORDS), "bos_id": 0, "eos_id": len(WORDS) - 1, "pad_id": 1}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt to reach a network fails the test."""

    def refuse(self: socket.socket, address: object) -> None:
        raise AssertionError(f"tried to connect to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def hybrid() -> nn.Module:
    """A small random model with recurrent, evicting and full attention layers."""
    return build_tiny("gdn", "lte", "attention")


@pytest.fixture
def lalte() -> nn.Module:
    """A small random model with recurrent and evicting layers, in turns."""
    return build_tiny("gdn", "lte", "gdn", "lte")


@pytest.fixture
def gdn() -> nn.Module:
    """A small random recurrent model."""
    return build_tiny("gdn", "gdn")


@pytest.fixture(params=["g2", "g5"])
def gdn_prosg(request: pytest.FixtureRequest) -> nn.Module:
    """`gdn` under ProSG, its update as after training; g5 reads the prompt at several points."""
    model = build_tiny("gdn", "gdn", prosg={"generator": request.param, "rank": 2, "width": 8})
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=draw)
    return model


def build_tiny(*mixers: str, prosg: dict[str, Any] | None = None) -> nn.Module:
    """A small random model with these token mixers and one channel mixer."""
    from forgetmenot import model as models

    options = {
        "gdn": {"heads": 2, "key_dim": 8, "value_dim": 8},
        "lte": {"heads": 2, "kv_heads": 2, "head_dim": 8, "window": 8, "sink": 2, "budget": 6},
        "attention": {"heads": 2, "kv_heads": 2, "head_dim": 8},
    }
    ffn: list[Any] = ["swiglu", {"width": 32}]
    # ProSG reads blocks of a token mixer and a channel mixer.
    between = [ffn] if prosg else []
    layers: list[Any] = [x for name in mixers for x in ([name, options[name]], *between)]
    layers += [] if prosg else [ffn]
    spec = {"hidden": 16, "vocab": len(WORDS), "layers": layers, "norm_eps": 1e-6}
    model = models.build(spec | {"tie_embeddings": True, "init_std": None, "prosg": prosg})
    model.init_parameters(0)
    return model.eval()
