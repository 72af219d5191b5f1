"""The reference's model configurations, read into plain model specs of ours.

A configuration is what stands in the `config.json` of a released checkpoint. Each key either
decides the function, and is then declared here with the values that ours can do, or is listed as
without influence on it. Any other key is refused, since it may mean another function.
"""

from dataclasses import dataclass
from typing import Any, Literal

from forgetmenot.config_files import check
from forgetmenot.errors import UserError

# Training, kernels' choice, book-keeping: the logits of a forward pass do not depend on these.
WITHOUT_INFLUENCE = {
    *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "attn_mode"),
    *("fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "fuse_linear_cross_entropy", "use_l2warp"),
    *("return_dict", "output_attentions", "output_hidden_states", "gradient_checkpointing"),
    *("l1_lambda_init", "l1_lambda_min", "l1_lambda_max", "l1_alpha", "l1_alpha_neg"),
    *("l1_warmup_steps", "l1_lambda_initial_steps", "l1_lambda_update_steps"),
    *("l1_lambda_shared", "l1_lambda_tolerate", "routing_freeze_steps"),
}
GATED_DELTANET = {"attn", "attn_mode", "expand_v", "use_gate", "use_short_conv", "conv_size"}
NSA = {"block_size", "block_counts"}
# Its class does not hand the configured width on to its layers (specification, section 9, point 9).
PURE_NSA_HEAD_DIM = 64


@dataclass(frozen=True, kw_only=True)
class _Common:
    hidden_size: int = 2048
    num_hidden_layers: int = 24
    vocab_size: int = 32_000
    hidden_ratio: float | None = 4
    intermediate_size: int | None = None
    hidden_act: Literal["swish", "silu"] = "swish"
    norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False


@dataclass(frozen=True, kw_only=True)
class _Transformer(_Common):
    num_heads: int = 32
    num_kv_heads: int | None = None
    qkv_bias: Literal[False] = False
    qk_norm: Literal[False] = False
    window_size: int | None = None
    rope_theta: float = 10_000.0
    elementwise_affine: Literal[True] = True


@dataclass(frozen=True, kw_only=True)
class _NSA(_Common):
    num_heads: int = 64
    num_kv_heads: int | None = 4
    head_dim: int = PURE_NSA_HEAD_DIM
    qkv_bias: Literal[False] = False
    block_size: int = 64
    block_counts: int = 16
    window_size: int = 512
    rope_theta: float = 10_000.0
    elementwise_affine: Literal[True] = True


@dataclass(frozen=True, kw_only=True)
class _GatedDeltaNet(_Common):
    num_hidden_layers: int = 21
    head_dim: int = 256
    num_heads: int = 6
    num_v_heads: None = None
    expand_v: float = 2
    use_gate: Literal[True] = True
    use_short_conv: Literal[True] = True
    conv_size: int = 4
    allow_neg_eigval: Literal[False] = False
    attn: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class _Attention:
    layers: list[int]
    num_heads: int
    attn_type: Literal["attn"] = "attn"
    num_kv_heads: int | None = None
    qkv_bias: Literal[False] = False
    window_size: int | None = None
    rope_theta: float = 10_000.0


@dataclass(frozen=True, kw_only=True)
class _HybridNSA:
    layers: list[int]
    num_heads: int
    attn_type: Literal["nsa"]
    head_dim: int
    block_size: int
    block_counts: int
    window_size: int
    num_kv_heads: int | None = None
    qkv_bias: Literal[False] = False
    rope_theta: float = 10_000.0


@dataclass(frozen=True, kw_only=True)
class _HybridLTE:
    layers: list[int]
    num_heads: int
    attn_type: Literal["lte"]
    window_size: int
    conv_size: list[int]
    conv_dilation: list[int]
    dropout_prob: float
    buffer_size: int
    sink_size: int
    routing_method: Literal["sigmoid", "relu"]
    routing_grad: bool
    routing_shared: Literal["head", "layer", "all"]
    num_kv_heads: int | None = None
    qkv_bias: Literal[False] = False
    rope_theta: float = 10_000.0


_FAMILIES: dict[str, type[_Common]] = {
    "transformer": _Transformer,
    "nsa": _NSA,
    "gated_deltanet": _GatedDeltaNet,
    "hybrid_gated_deltanet": _GatedDeltaNet,
}
_HYBRIDS: dict[str, type[Any]] = {"attn": _Attention, "nsa": _HybridNSA, "lte": _HybridLTE}


def model_spec(config: dict[str, Any], where: str = "config") -> dict[str, Any]:
    """The plain model spec (see model.py) of a configuration of the reference.

    Without a key `model_type` the family follows from the keys that only one family has. Raises
    UserError, blaming `where`, for a value that ours cannot do and for a key that is unknown.
    """
    family = config.get("model_type") or _guess(config)
    if family not in _FAMILIES:
        allowed = ", ".join(_FAMILIES)
        raise UserError(f"{where}: model_type: found {family!r}; allowed: {allowed}")
    c: Any = _checked(_FAMILIES[family], config, where)
    layers = []
    for token_mixer in _token_mixers(c, family, where):
        layers += [token_mixer, ["swiglu", {"width": _inner_width(c)}]]
    return {
        "hidden": c.hidden_size,
        "vocab": c.vocab_size,
        "layers": layers,
        "norm": "rmsnorm",
        "norm_eps": c.norm_eps,
        "tie_embeddings": c.tie_word_embeddings,
        "init_std": c.initializer_range,
        "prosg": None,
    }


def _guess(config: dict[str, Any]) -> str:
    if config.keys() & GATED_DELTANET:
        return "hybrid_gated_deltanet"
    return "nsa" if config.keys() & NSA else "transformer"


def _checked(schema: type[Any], values: dict[str, Any], where: str) -> Any:
    """Values against a schema, less what has no influence: those keys, and unknown ones at null."""
    known = set(schema.__dataclass_fields__)
    kept = {
        key: value
        for key, value in values.items()
        if key in known
        or not (
            key in WITHOUT_INFLUENCE or key == "model_type" or key.startswith("_") or value is None
        )
    }
    return check(schema, kept, where)


def _token_mixers(c: Any, family: str, where: str) -> list[list[Any]]:
    if family == "transformer":
        return [["attention", _attention(c, c, where)]] * c.num_hidden_layers
    if family == "nsa":
        return [["nsa", _nsa(c, PURE_NSA_HEAD_DIM)]] * c.num_hidden_layers
    if c.norm_eps != 1e-6:
        raise UserError(f"{where}: norm_eps: found {c.norm_eps}; allowed with GDN layers: 1e-06")
    value_dim = c.head_dim * c.expand_v
    if value_dim != int(value_dim):
        raise UserError(
            f"{where}: expand_v: found {c.expand_v}; allowed: what makes head_dim times it whole"
        )
    gdn = {
        "heads": c.num_heads,
        "key_dim": c.head_dim,
        "value_dim": int(value_dim),
        "conv": c.conv_size,
    }
    if c.attn is None:
        return [["gdn", gdn]] * c.num_hidden_layers
    other, chosen = _hybrid(c, family, f"{where}: attn")
    return [other if n in chosen else ["gdn", gdn] for n in range(c.num_hidden_layers)]


def _hybrid(c: Any, family: str, where: str) -> tuple[list[Any], set[int]]:
    """The token mixer that stands beside GDN, and the indices of its blocks."""
    allowed = ["attn"] if family == "gated_deltanet" else list(_HYBRIDS)
    kind = c.attn.get("attn_type", "attn")
    if kind not in allowed:
        raise UserError(f"{where}.attn_type: found {kind!r}; allowed: {', '.join(allowed)}")
    a = _checked(_HYBRIDS[kind], c.attn, where)
    if kind == "nsa":
        return ["nsa", _nsa(a, a.head_dim)], set(a.layers)
    options = _attention(c, a, where)
    if kind == "attn":
        return ["attention", options], set(a.layers)
    options |= {
        # The reference's window leaves the current token out, ours counts it (section 2.2).
        "window": a.window_size + 1,
        "sink": a.sink_size,
        "budget": a.buffer_size,
        "kernels": a.conv_size,
        "dilations": a.conv_dilation,
        "dropout": a.dropout_prob,
        "router_shared": a.routing_shared,
        "router_score": a.routing_method,
        "router_grad": a.routing_grad,
    }
    return ["lte", options], set(a.layers)


def _attention(c: Any, a: Any, where: str) -> dict[str, Any]:
    if c.hidden_size % a.num_heads:
        raise UserError(
            f"{where}: num_heads: found {a.num_heads}; allowed: divisors of hidden_size "
            f"{c.hidden_size}"
        )
    return {
        "heads": a.num_heads,
        "kv_heads": a.num_kv_heads or a.num_heads,
        "head_dim": c.hidden_size // a.num_heads,
        "window": a.window_size,
        "rope_theta": a.rope_theta,
    }


def _nsa(a: Any, head_dim: int) -> dict[str, Any]:
    return {
        "heads": a.num_heads,
        "kv_heads": a.num_kv_heads or a.num_heads,
        "head_dim": head_dim,
        "block": a.block_size,
        "selected": a.block_counts,
        "window": a.window_size,
        "rope_theta": a.rope_theta,
    }


def _inner_width(c: Any) -> int:
    """`intermediate_size`, or 2/3 of hidden_ratio times the hidden size, in steps of 256."""
    if c.intermediate_size is not None:
        return int(c.intermediate_size)
    width = int(c.hidden_size * (c.hidden_ratio or 4) * 2 / 3)
    return -(-width // 256) * 256
