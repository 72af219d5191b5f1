import json

import pytest
import torch
import torch.nn.functional as F
from released_forward import checkpoint, logits
from safetensors.torch import save_file

from forgetmenot.cli import conformance
from forgetmenot.errors import UserError
from forgetmenot.released import from_reference

COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "vocab_size": 23,
    "hidden_ratio": 4,
    "tie_word_embeddings": True,
    "fuse_norm": True,
    "max_position_embeddings": 512,
    "pad_token_id": None,
}
TRANSFORMER = COMMON | {"model_type": "transformer", "num_heads": 4, "num_kv_heads": 2}
GDN = COMMON | {
    "model_type": "gated_deltanet",
    "num_heads": 2,
    "head_dim": 8,
    "expand_v": 1,
    "use_gate": True,
    "use_short_conv": True,
    "conv_size": 4,
}
ATTN = {"layers": [1, 2], "num_heads": 4, "num_kv_heads": 2, "qkv_bias": False}
LTE = ATTN | {
    "attn_type": "lte",
    "window_size": 7,
    "rope_theta": 500.0,
    "conv_size": [3, 3, 3],
    "conv_dilation": [2, 2, 2],
    "dropout_prob": 0.1,
    "buffer_size": 64,
    "sink_size": 2,
    "routing_method": "sigmoid",
    "routing_grad": True,
    "routing_shared": "head",
    "l1_lambda_init": 1e-9,
    "l1_lambda_shared": "head",
    "routing_freeze_steps": 0,
}
NSA = {
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 64,
    "block_size": 8,
    "block_counts": 4,
    "window_size": 5,
}
HYBRID = GDN | {"model_type": "hybrid_gated_deltanet"}
CONFIGS = {
    "transformer": TRANSFORMER | {"window_size": None},
    "transformer, window, untied": TRANSFORMER
    | {"window_size": 6, "rope_theta": 100.0, "tie_word_embeddings": False, "norm_eps": 1e-5},
    "transformer, intermediate size": TRANSFORMER | {"intermediate_size": 24},
    "gdn": GDN | {"expand_v": 2.0, "conv_size": 3, "num_v_heads": None},
    "gdn_swa": GDN | {"attn": ATTN | {"window_size": 6}},
    "gdn_attn": GDN | {"attn": ATTN | {"window_size": None}},
    "hybrid attn": HYBRID | {"attn": ATTN | {"attn_type": "attn", "window_size": 6}},
    "gdn_lte": HYBRID | {"attn": LTE},
    "gdn_lte, MLP scorer, relu": HYBRID
    | {"attn": LTE | {"conv_size": [1, 1], "conv_dilation": [1, 1], "routing_method": "relu"}},
    "gdn_lte, router of a layer": HYBRID | {"attn": LTE | {"routing_shared": "layer"}},
    "gdn_lte, router of all": HYBRID | {"attn": LTE | {"routing_shared": "all"}},
    "gdn_nsa": HYBRID | {"attn": ATTN | NSA | {"attn_type": "nsa", "head_dim": 16}},
    "nsa": COMMON | NSA | {"model_type": "nsa"},
}


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_a_plain_forward_in_float64(name: str) -> None:
    config = CONFIGS[name]
    weights = checkpoint(config, seed=0)
    input_ids = torch.randint(23, (2, 37), generator=torch.Generator().manual_seed(1))
    wanted = logits(config, weights, input_ids)
    model = from_reference(config, weights)
    assert not model.training
    with torch.no_grad():
        found = model(input_ids).logits
    assert found.dtype == torch.float32
    assert relative(found, wanted) < 2e-5


@pytest.mark.parametrize("name", ["transformer", "gdn", "gdn_lte", "gdn_nsa", "nsa"])
def test_the_family_follows_from_the_keys_where_no_model_type_is_given(name: str) -> None:
    config = {key: value for key, value in CONFIGS[name].items() if key != "model_type"}
    weights = checkpoint(CONFIGS[name], seed=0)
    found = from_reference(config, weights).spec
    assert found == from_reference(CONFIGS[name], weights).spec


def test_weights_are_copies_and_take_any_floating_dtype() -> None:
    weights = checkpoint(GDN, seed=0)
    halves = {name: weight.bfloat16() for name, weight in weights.items()}
    model = from_reference(GDN, halves)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    before = model.embed.weight.clone()
    halves["model.embeddings.weight"].zero_()
    assert torch.equal(model.embed.weight, before)
    full = from_reference(GDN, weights)
    with torch.no_grad():
        full.embed.weight.zero_()
    assert weights["model.embeddings.weight"].any()


def test_a_tied_head_may_be_listed_but_must_be_the_embedding() -> None:
    weights = checkpoint(TRANSFORMER, seed=0)
    listed = weights | {"lm_head.weight": weights["model.embeddings.weight"].clone()}
    ids = torch.arange(5)[None]
    with torch.no_grad():
        wanted = from_reference(TRANSFORMER, weights)(ids).logits
        assert torch.equal(from_reference(TRANSFORMER, listed)(ids).logits, wanted)
    listed["lm_head.weight"] = listed["lm_head.weight"] + 1
    with pytest.raises(UserError, match=r"lm_head\.weight: found values that differ"):
        from_reference(TRANSFORMER, listed)


def test_a_shared_router_may_be_saved_under_any_of_its_layers_but_only_one() -> None:
    config = CONFIGS["gdn_lte, router of all"]
    weights = checkpoint(config, seed=0)
    first = {name for name in weights if name.startswith("model.layers.1.attn.router.")}
    once = {name: weight for name, weight in weights.items() if name not in first}
    ids = torch.arange(20)[None]
    with torch.no_grad():
        wanted = from_reference(config, weights)(ids).logits
        assert torch.equal(from_reference(config, once)(ids).logits, wanted)
    torn = weights | {name: weights[name] + 1 for name in first if name.endswith("proj.bias")}
    with pytest.raises(UserError, match=r"layers\.2\.attn\.router.*proj\.bias: found values that"):
        from_reference(config, torn)


def test_buffers_of_the_sparsity_control_are_left_out() -> None:
    config = CONFIGS["gdn_lte"]
    weights = checkpoint(config, seed=0) | {
        "model.l1_lambda": torch.ones(2, 2),
        "model.num_kept": torch.ones(2, 2),
    }
    from_reference(config, weights)


def test_all_parameters_that_do_not_fit_are_named() -> None:
    weights = checkpoint(TRANSFORMER, seed=0)
    del weights["model.layers.0.attn.q_proj.weight"]
    weights["model.layers.0.attn.qkv_proj.weight"] = torch.zeros(64, 32)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(256, 31)
    weights["model.norm.weight"] = torch.zeros(32, dtype=torch.int64)
    with pytest.raises(UserError) as caught:
        from_reference(TRANSFORMER, weights)
    message = str(caught.value)
    assert "missing model.layers.0.attn.q_proj.weight [32, 32]" in message
    assert "unknown model.layers.0.attn.qkv_proj.weight" in message
    assert (
        "model.layers.1.mlp.up_proj.weight: found shape [256, 31], the configuration asks for "
        "[256, 32]" in message
    )
    assert "model.norm.weight: found dtype torch.int64" in message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TRANSFORMER | {"model_type": "llama"}, "model_type: found 'llama'; allowed: transformer,"),
        (TRANSFORMER | {"qkv_bias": True}, "qkv_bias: found True"),
        (TRANSFORMER | {"qk_norm": True}, "qk_norm: found True"),
        (TRANSFORMER | {"hidden_act": "gelu"}, "hidden_act: found 'gelu'"),
        (TRANSFORMER | {"elementwise_affine": False}, "elementwise_affine: found False"),
        (TRANSFORMER | {"rope_scaling": {"factor": 2}}, "rope_scaling: unknown key"),
        (TRANSFORMER | {"rope_theta": None}, "rope_theta: found None"),
        (TRANSFORMER | {"num_heads": 5}, "num_heads: found 5; allowed: divisors of hidden_size 32"),
        (TRANSFORMER | {"num_kv_heads": 3}, "kv_heads: found 3; allowed: divisors of 4"),
        (TRANSFORMER | {"hidden_size": "32"}, "hidden_size: found '32'"),
        (GDN | {"use_gate": False}, "use_gate: found False"),
        (GDN | {"use_short_conv": False}, "use_short_conv: found False"),
        (GDN | {"allow_neg_eigval": True}, "allow_neg_eigval: found True"),
        (GDN | {"num_v_heads": 4}, "num_v_heads: found 4"),
        (GDN | {"norm_eps": 1e-5}, "norm_eps: found 1e-05; allowed with GDN layers: 1e-06"),
        (GDN | {"expand_v": 1.05}, "expand_v: found 1.05"),
        (GDN | {"attn": LTE}, "attn.attn_type: found 'lte'; allowed: attn"),
        (HYBRID | {"attn": ATTN | {"attn_type": "moba"}}, "found 'moba'; allowed: attn, nsa, lte"),
        (HYBRID | {"attn": LTE | {"routing_method": "top"}}, "routing_method: found 'top'"),
        (HYBRID | {"attn": LTE | {"conv_size": [2, 3, 3]}}, "kernels: found [2, 3, 3]"),
        (HYBRID | {"attn": LTE | {"sink_size": None}}, "sink_size: found None"),
        (HYBRID | {"attn": LTE | {"kernel": 3}}, "attn: kernel: unknown key"),
    ],
)  # fmt: skip
def test_a_configuration_that_ours_cannot_do_is_refused(config: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        from_reference(config, {})
    assert message in str(caught.value)


def golden_folder(folder, shift: float) -> None:
    """Files as the reference would give them, their logits off by a relative `shift`."""
    entries = {}
    for name in ("transformer", "gdn_lte"):
        config = CONFIGS[name]
        weights = checkpoint(config, seed=2)
        ids = torch.arange(30).remainder(23)[None]
        wanted = logits(config, weights, ids).float()
        noise = F.normalize(torch.randn_like(wanted).flatten(), dim=0).view_as(wanted)
        tensors = {f"w.{key}": value for key, value in weights.items()}
        tensors |= {"input_ids": ids, "logits": wanted + shift * wanted.norm() * noise}
        save_file(tensors, folder / f"{name}.safetensors")
        entries[name] = {"config": config}
    (folder / "golden.json").write_text(json.dumps(entries))


def test_the_conformance_command_tells_agreement_by_its_status(tmp_path, capsys) -> None:
    for shift, status in ((0.003, 0), (0.02, 1)):
        golden_folder(tmp_path, shift)
        with pytest.raises(SystemExit) as exit_:
            conformance.main([str(tmp_path)])
        assert exit_.value.code == status
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["file", "relative", "RMS", "limit"]
        assert float(lines[2].split()[1]) == pytest.approx(shift, rel=0.02)
        assert lines[2].startswith("gdn_lte.safetensors")
        assert ("above the limit" in lines[2]) == bool(status)


def test_the_conformance_command_names_what_is_missing(tmp_path, capsys) -> None:
    golden_folder(tmp_path, 0.0)
    (tmp_path / "gdn_lte.safetensors").unlink()
    with pytest.raises(SystemExit) as exit_:
        conformance.main([str(tmp_path)])
    assert exit_.value.code == 2
    assert "gdn_lte.safetensors: not a readable safetensors file" in capsys.readouterr().err
