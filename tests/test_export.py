"""Exported models: loading, generation, padding, tokenizers, registration."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, processors
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from forgetmenot.cli.export import main
from forgetmenot.data.tokenizer_folder import load_tokenizer, save_tokenizer
from forgetmenot.errors import UserError
from forgetmenot.evaluate.generate import greedy
from forgetmenot.export import export
from forgetmenot.hf_cache import ForgetmenotCache
from forgetmenot.hf_config import ForgetmenotConfig
from forgetmenot.hf_model import ForgetmenotForCausalLM
from forgetmenot.model import build, load, save

FFN = ["swiglu", {"width": 32}]
GDN = ["gdn", {"heads": 2, "key_dim": 8, "value_dim": 8}]
HEADS = {"heads": 2, "kv_heads": 1, "head_dim": 8}
LTE = ["lte", {**HEADS, "window": 7, "sink": 1, "budget": 5, "router_shared": "all"}]
NSA = ["nsa", {"heads": 4, "kv_heads": 2, "head_dim": 8, "block": 4, "selected": 3, "window": 6}]
LAYERS: dict[str, list[Any]] = {
    "transformer": [["attention", HEADS], FFN],
    "nsa": [NSA, FFN],
    "gdn_swa": [GDN, FFN, ["attention", {**HEADS, "window": 6}], FFN],
    "gdn_lte": [LTE, FFN, GDN, FFN, LTE, FFN],
    "rwkv4": [["rwkv4_time", {}], ["rwkv4_channel", {"width": 32}]] * 2,
}
VOCAB = 67
PROMPTS = [[0, 5, 9], [0, 8], [0, *range(3, 33)], [0, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49]]


def spec(variant: str, **changes: Any) -> dict[str, Any]:
    return {
        "hidden": 16,
        "vocab": VOCAB,
        "layers": LAYERS[variant],
        "norm": "layernorm" if variant == "rwkv4" else "rmsnorm",
        "norm_eps": 1e-6,
        "tie_embeddings": True,
        "init_std": None,
        "prosg": None,
        **changes,
    }


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of single characters: <s> 0 (put first), </s> 1, <pad> 2, and 64 others."""
    letters = [chr(code) for code in range(ord(">") - 30, ord(">") + 34)]
    vocab = {token: n for n, token in enumerate(["<s>", "</s>", "<pad>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, tokenizer, "<s>", "</s>", "<pad>", {})
    return folder


def trained(folder: Path, seed: int = 3, **changes: Any) -> Path:
    """A model folder as training writes it."""
    model = build(spec(**changes))
    model.init_parameters(seed)
    save(model, folder)
    return folder


@pytest.fixture(scope="module", params=LAYERS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, ForgetmenotForCausalLM]:
    """Our model, and the same one exported and loaded."""
    # tied models of random weights repeat their last token
    folder = tmp_path_factory.mktemp("trained")
    trained(folder, variant=request.param, tie_embeddings=False)
    out = tmp_path_factory.mktemp("exported")
    export(folder, None, out)
    return load(folder), AutoModelForCausalLM.from_pretrained(out)


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`PROMPTS` as one batch, padded with token 2, and its attention mask."""
    longest = max(map(len, PROMPTS))
    rows, mask = [], []
    for prompt in PROMPTS:
        fill = longest - len(prompt)
        left, right = (fill, 0) if side == "left" else (0, fill)
        rows.append([2] * left + prompt + [2] * right)
        mask.append([0] * left + [1] * len(prompt) + [0] * right)
    return torch.tensor(rows), torch.tensor(mask)


def test_generation_equals_our_own_with_cache_and_padding(pair: Any) -> None:
    ours, exported = pair
    expected = greedy(
        ours, PROMPTS, max_new_tokens=20, batch_size=2, stop=lambda ids: False, device="cpu"
    )
    assert all(len(set(row)) > 3 for row in expected)
    ids, mask = padded("left")
    for use_cache in (True, False):
        found = exported.generate(
            ids, attention_mask=mask, max_new_tokens=20, do_sample=False, use_cache=use_cache
        )
        assert found[:, ids.shape[1] :].tolist() == expected


@pytest.mark.parametrize(
    "how",
    [{"do_sample": True}, {"num_beams": 3, "do_sample": False}, {"num_return_sequences": 2}],
    ids=["sampled", "beams", "several"],
)
def test_other_decoding_is_the_same_with_and_without_cache(pair: Any, how: dict[str, Any]) -> None:
    _, exported = pair
    ids, mask = padded("left")
    found = []
    for use_cache in (True, False):
        torch.manual_seed(7)
        options = {"do_sample": True, "max_new_tokens": 12, "use_cache": use_cache, **how}
        found.append(exported.generate(ids, attention_mask=mask, **options))
    assert torch.equal(*found)
    assert len(found[0].unique(dim=0)) == len(found[0])


def test_chunked_prefill_and_a_cache_carried_on(pair: Any) -> None:
    _, exported = pair
    ids = torch.tensor([PROMPTS[2]])
    options = {"max_new_tokens": 8, "do_sample": False}
    expected = exported.generate(ids, **options)
    assert torch.equal(exported.generate(ids, prefill_chunk_size=7, **options), expected)
    first = exported.generate(ids, **{**options, "max_new_tokens": 3}, return_dict_in_generate=True)
    cache = first.past_key_values
    assert isinstance(cache, ForgetmenotCache)
    assert cache.get_seq_length() == first.sequences.shape[1] - 1
    found = exported.generate(
        first.sequences, past_key_values=cache, **{**options, "max_new_tokens": 5}
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logits(pair: Any, side: str) -> None:
    ours, exported = pair
    ids, mask = padded(side)
    with torch.no_grad():
        logits = exported(ids, attention_mask=mask).logits
        for row, prompt in enumerate(PROMPTS):
            alone = ours(torch.tensor([prompt])).logits_BLV[0]
            torch.testing.assert_close(logits[row, mask[row] == 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("variant", LAYERS)
def test_loaded_and_saved_again_is_the_same_model(
    variant: str, tied: bool, tmp_path: Path, empty_is_nan: None
) -> None:
    folder = trained(tmp_path / "trained", variant=variant, tie_embeddings=tied)
    export(folder, None, tmp_path / "first")
    first = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    first.save_pretrained(tmp_path / "second")
    second = AutoModelForCausalLM.from_pretrained(tmp_path / "second")
    ours = load(folder)
    ids = torch.randint(VOCAB, (2, 40))
    for model in (first, second):
        assert isinstance(model, ForgetmenotForCausalLM)
        assert model.config.spec == ours.spec
        assert torch.equal(model(ids).logits, ours(ids).logits_BLV)
        names = {name for name, _ in model.model.named_parameters()}
        assert names == {name for name, _ in ours.named_parameters()}
        # a buffer of ours that is not saved would need an initialiser of its own
        assert not list(model.buffers())
    assert len(load_file(tmp_path / "second" / "model.safetensors")) == len(names)


@pytest.fixture
def empty_is_nan() -> Iterator[None]:
    """`torch.empty` is full of NaN, so that what loading leaves out is noticed."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    export(trained(tmp_path / "trained", variant="nsa"), None, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    kept = {name: tensor for name, tensor in tensors.items() if "final_norm" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing_keys model\.final_norm\.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    save_file({**tensors, "model.extra": torch.ones(1)}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"unexpected_keys model\.extra"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.fixture(scope="module")
def small() -> ForgetmenotForCausalLM:
    model = ForgetmenotForCausalLM(ForgetmenotConfig(spec=spec("gdn_swa"))).eval()
    model.model.init_parameters(3)
    return model


def test_labels_give_the_loss_of_the_next_token(small: ForgetmenotForCausalLM) -> None:
    ids, mask = padded("right")
    labels = ids.masked_fill(mask == 0, -100)
    out = small(ids, attention_mask=mask, labels=labels)
    expected = functional.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    count = int((labels[:, 1:] != -100).sum())
    torch.testing.assert_close(out.loss, expected / count)
    out = small(ids, attention_mask=mask, labels=labels, num_items_in_batch=100)
    torch.testing.assert_close(out.loss, expected / 100)


def test_output_has_what_was_asked_for(
    small: ForgetmenotForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(VOCAB, (2, 9))
    out = small(ids)
    assert out.past_key_values.get_seq_length() == 9
    assert torch.equal(small(ids, logits_to_keep=2).logits, out.logits[:, -2:])
    heads = []
    linear = functional.linear

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        if weight is small.model.embed.weight:
            heads.append(x.shape[1])
        return linear(x, weight, bias)

    with monkeypatch.context() as patch:
        patch.setattr(functional, "linear", counted)
        small(ids, logits_to_keep=1)
        small(ids, logits_to_keep=1, labels=ids)  # the loss needs all
    assert heads == [1, 9]
    chosen = torch.tensor([0, 4])
    assert torch.equal(small(ids, logits_to_keep=chosen).logits, out.logits[:, chosen])
    assert small(ids, use_cache=False).past_key_values is None
    assert torch.equal(small(ids, return_dict=False)[0], out.logits)
    right = small(*padded("right"))
    assert right.past_key_values is None
    small.train()
    assert small(ids).past_key_values is None
    small.eval()


def test_what_it_cannot_do_is_refused(small: ForgetmenotForCausalLM) -> None:
    ids, mask = padded("right")
    refused: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "padding after a token", {"attention_mask": mask, "use_cache": True}),
        (ValueError, "row without tokens", {"attention_mask": mask * 0}),
        (ValueError, r"found shape \(4, 5\); allowed: \(4, 31\)", {"attention_mask": mask[:, :5]}),
        (TypeError, "found DynamicCache", {"past_key_values": DynamicCache()}),
    ]
    holes = mask.clone()
    holes[2, 4] = 0
    refused.append((ValueError, "padding within a sequence", {"attention_mask": holes}))
    for error, message, arguments in refused:
        with pytest.raises(error, match=message):
            small(ids, **arguments)
    cache = small(ids).past_key_values
    longer = torch.cat([torch.ones_like(mask), torch.tensor([[1], [1], [1], [0]])], 1)
    with pytest.raises(ValueError, match="padding beside a cache"):
        small(ids[:, :1], attention_mask=longer, past_key_values=cache)
    for decoding in ({"prompt_lookup_num_tokens": 2}, {"cache_implementation": "static"}):
        with pytest.raises(ValueError, match=r"assisted|cache_implementation"):
            small.generate(ids[:1, :3], max_new_tokens=4, do_sample=False, **decoding)
    with pytest.raises(NotImplementedError, match="cannot be cut back"):
        cache.crop(1)
    with pytest.raises(NotImplementedError, match="part of the spec"):
        small.resize_token_embeddings(99)


def test_bfloat16_and_double(tmp_path: Path) -> None:
    export(trained(tmp_path / "trained", variant="gdn_swa"), None, tmp_path / "out")
    ids = torch.randint(VOCAB, (2, 9))
    double = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    difference = (half(ids).logits.double() - double(ids).logits).norm()
    assert difference < 0.05 * double(ids).logits.norm()


def test_tokenizer_encodes_as_ours(tokenizer_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(trained(tmp_path / "trained", variant="nsa"), tokenizer_folder, out)
    ours, theirs = load_tokenizer(tokenizer_folder), AutoTokenizer.from_pretrained(out)
    for text in ("", "HELLO", "<s>HI</s>", "A<pad>"):
        assert theirs(text)["input_ids"] == ours.encode(text).ids
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text).ids[1:]
        assert theirs.decode(ours.encode(text).ids) == ours.decode(ours.encode(text).ids, False)
    batch = theirs(["A", "HELLO"], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"][0].tolist() == [2] * 4 + ours.encode("A").ids
    theirs.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again("<s>HI</s>")["input_ids"] == ours.encode("<s>HI</s>").ids
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.generation_config.eos_token_id == [0, 1]
    assert model.generation_config.pad_token_id == 2


def test_export_is_complete_or_not_there(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = trained(tmp_path / "trained", variant="nsa"), tmp_path / "a" / "out"

    def fails(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(ForgetmenotForCausalLM, "save_pretrained", fails)
        with pytest.raises(OSError, match="no space"):
            export(folder, tokenizer_folder, out)
    assert not list(out.parent.iterdir())
    assert main([str(folder), str(out), "--tokenizer", str(tokenizer_folder)]) == 0
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_forgetmenot.py",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_unfit_folders_are_one_line_on_stderr(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(tmp_path / "trained", variant="nsa")
    little = trained(tmp_path / "little", variant="nsa", vocab=20)
    other = trained(tmp_path / "prosg", variant="rwkv4", prosg={"rank": 2})
    out = tmp_path / "out"
    for arguments, message in (
        ([folder, tmp_path], "found files there"),
        ([tmp_path, out], "not a readable model spec"),
        ([other, out], "found a ProSG model"),
        ([folder, out, "--tokenizer", tmp_path], "no vocab_size"),
        (
            [little, out, "--tokenizer", tokenizer_folder],
            "found 67 tokens; allowed: at most the 20",
        ),
    ):
        assert main([str(argument) for argument in arguments]) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()
