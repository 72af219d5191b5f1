"""Made checkpoints in the reference's names, and a plain float64 forward pass over them.

Written from sections 1.2, 1.4, 2 and 4 of the LTE specification alone, sharing no code with the
package: loops over positions and dense masks.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F

Weights = dict[str, torch.Tensor]


def checkpoint(config: dict[str, Any], seed: int) -> Weights:
    """Random float32 weights for a configuration that names what it does not leave at a default."""
    shapes = _shapes(config)
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        spread = 0.5 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
        weights[name] = torch.randn(shape, generator=draw) * spread
        if name.endswith("norm.weight"):
            weights[name] += 1
    attn = config.get("attn") or {}
    if attn.get("routing_shared") == "all":
        first = f"model.layers.{min(attn['layers'])}.attn.router."
        for name in shapes:
            if ".attn.router." in name:
                weights[name] = weights[first + name.split(".router.")[1]].clone()
    return weights


def logits(config: dict[str, Any], weights: Weights, input_ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] in float64."""
    w = {name: weight.double() for name, weight in weights.items()}
    eps = config.get("norm_eps", 1e-6)
    x = w["model.embeddings.weight"][input_ids]
    for n in range(config["num_hidden_layers"]):
        block = _under(w, f"model.layers.{n}.")
        mix = {"gdn": _gdn, "nsa": _nsa, "lte": _lte, "attn": _attention}[_kind(config, n)]
        options = config["attn"] if n in _beside_gdn(config) else config
        x = x + mix(_norm(x, block["attn_norm.weight"], eps), _under(block, "attn."), options)
        h = _norm(x, block["mlp_norm.weight"], eps)
        gate, up = h @ block["mlp.gate_proj.weight"].T, h @ block["mlp.up_proj.weight"].T
        x = x + (gate * gate.sigmoid() * up) @ block["mlp.down_proj.weight"].T
    head = w["model.embeddings.weight"] if config["tie_word_embeddings"] else w["lm_head.weight"]
    return _norm(x, w["model.norm.weight"], eps) @ head.T


def _under(weights: Weights, prefix: str) -> Weights:
    return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}


def _beside_gdn(config: dict[str, Any]) -> list[int]:
    return (config.get("attn") or {}).get("layers", [])


def _kind(config: dict[str, Any], n: int) -> str:
    if "deltanet" in config["model_type"]:
        return config["attn"].get("attn_type", "attn") if n in _beside_gdn(config) else "gdn"
    return "nsa" if config["model_type"] == "nsa" else "attn"


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def _project(x: torch.Tensor, w: Weights, heads: dict[str, int]) -> list[torch.Tensor]:
    return [(x @ w[f"{p}_proj.weight"].T).unflatten(-1, (h, -1)) for p, h in heads.items()]


def _rope(x: torch.Tensor, theta: float) -> torch.Tensor:
    """[B, T, H, D]: pairs (d, d + D/2) turned by position * theta**(-2d/D), as complex numbers."""
    first, second = x.chunk(2, -1)
    half = first.shape[-1]
    rate = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None, None] * rate
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), -1)


def _softmax_over(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Attention of [B, T, G, D] to [B, N, H, D] where mask [B, T, N, H]; zero if there is none."""
    group = q.shape[2] // k.shape[2]
    k, v, mask = (t.repeat_interleave(group, dim) for t, dim in ((k, 2), (v, 2), (mask, 3)))
    scores = torch.einsum("btgd,bngd->btng", q, k) / math.sqrt(q.shape[-1])
    weight = scores.masked_fill(~mask, -math.inf).softmax(2).nan_to_num(0.0)
    return torch.einsum("btng,bngd->btgd", weight, v)


def _before(time: int) -> torch.Tensor:
    """Distance i - j [T, T]; negative for what is to come."""
    steps = torch.arange(time)
    return steps[:, None] - steps


def _attention(x: torch.Tensor, w: Weights, o: dict[str, Any]) -> torch.Tensor:
    kv_heads = o.get("num_kv_heads") or o["num_heads"]
    q, k, v = _project(x, w, {"q": o["num_heads"], "k": kv_heads, "v": kv_heads})
    theta = o.get("rope_theta", 10_000.0)
    away = _before(x.shape[1])
    mask = (away >= 0) & (away < (o.get("window_size") or math.inf))
    mask = mask[None, :, :, None].expand(len(x), -1, -1, kv_heads)
    return (
        _softmax_over(_rope(q, theta), _rope(k, theta), v, mask).flatten(2) @ w["o_proj.weight"].T
    )


def _lte(x: torch.Tensor, w: Weights, o: dict[str, Any]) -> torch.Tensor:
    kv_heads = o["num_kv_heads"]
    q, k, v = _project(x, w, {"q": o["num_heads"], "k": kv_heads, "v": kv_heads})
    kept = _router(torch.cat((k, v), -1), w, o) > 0
    away = _before(x.shape[1])
    near = (away >= 0) & (away <= o["window_size"])
    old = (away >= 0)[None, :, :, None] & kept[:, None]
    old |= ((away >= 0) & (torch.arange(x.shape[1]) < o["sink_size"]))[None, :, :, None]
    mask = near[None, :, :, None] | old
    theta = o["rope_theta"]
    return (
        _softmax_over(_rope(q, theta), _rope(k, theta), v, mask).flatten(2) @ w["o_proj.weight"].T
    )


def _router(pairs: torch.Tensor, w: Weights, o: dict[str, Any]) -> torch.Tensor:
    """[B, T, H, 2D] to what precedes the sigmoid or ReLU [B, T, H], by 2-D convolutions."""
    batch, _, heads, _ = pairs.shape
    groups = heads if o["routing_shared"] == "head" else 1
    x = pairs.permute(0, 2, 3, 1)  # B, H, 2D, T
    x = x.reshape(batch, -1, 1, x.shape[-1]) if groups > 1 else x.flatten(0, 1)[:, :, None]
    stack = "router.conv_stack."
    for n, dilation in enumerate(o["conv_dilation"]):
        weight, bias = (w[f"{stack}convs.{n}.{kind}"] for kind in ("weight", "bias"))
        x = F.silu(F.conv2d(x, weight, bias, padding="same", dilation=(1, dilation), groups=groups))
    x = F.conv2d(x, w[f"{stack}proj.weight"], w[f"{stack}proj.bias"], groups=groups)
    return x.reshape(batch, heads, -1).transpose(1, 2)


def _nsa(x: torch.Tensor, w: Weights, o: dict[str, Any]) -> torch.Tensor:
    batch, time, _ = x.shape
    heads, kv_heads, size = o["num_heads"], o["num_kv_heads"], o["block_size"]
    q, k, v = _project(x, w, {"q": heads, "k": kv_heads, "v": kv_heads})
    theta = o.get("rope_theta", 10_000.0)
    q, k = _rope(q, theta), _rope(k, theta)
    compress, select, near = (
        (x @ w["g_proj.weight"].T).unflatten(-1, (heads, 3)).sigmoid().unbind(-1)
    )
    whole = time // size
    pool_k, pool_v = (t[:, : whole * size].unflatten(1, (whole, size)).mean(2) for t in (k, v))
    block, step = torch.arange(time) // size, torch.arange(time)
    complete = torch.arange(whole) < (step[:, None] + 1) // size
    seen = complete[None, :, :, None].expand(batch, -1, -1, kv_heads)
    selected = torch.zeros(batch, time, time, kv_heads, dtype=torch.bool)
    for b in range(batch):
        for i in range(time):
            for h in range(kv_heads):
                chosen = {0, int(block[i]), max(0, int(block[i]) - 1)}
                group = q[b, i].unflatten(0, (kv_heads, -1))[h]
                scores = group @ pool_k[b, :, h].T / math.sqrt(q.shape[-1])
                share = scores[:, complete[i]].softmax(-1).sum(0)
                ranked = share.argsort(descending=True).tolist()
                others = [c for c in ranked if c not in chosen]
                chosen |= set(others[: o["block_counts"] - len(chosen)])
                selected[b, i, :, h] = torch.isin(block, torch.tensor(sorted(chosen))) & (step <= i)
    away = _before(time)
    window = ((away >= 0) & (away < o["window_size"]))[None, :, :, None]
    y = compress[..., None] * _softmax_over(q, pool_k, pool_v, seen)
    y = y + select[..., None] * _softmax_over(q, k, v, selected)
    y = y + near[..., None] * _softmax_over(q, k, v, window.expand(batch, -1, -1, kv_heads))
    return y.flatten(2) @ w["o_proj.weight"].T


def _gdn(x: torch.Tensor, w: Weights, o: dict[str, Any]) -> torch.Tensor:
    batch, time, _ = x.shape
    heads, taps = o["num_heads"], o["conv_size"]
    q, k, v = (
        _short_conv(x @ w[f"{p}_proj.weight"].T, w[f"{p}_conv1d.weight"], taps).unflatten(
            -1, (heads, -1)
        )
        for p in "qkv"
    )
    q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    decay = (-w["A_log"].exp() * F.softplus(x @ w["a_proj.weight"].T + w["dt_bias"])).exp()
    beta = (x @ w["b_proj.weight"].T).sigmoid()
    memory = torch.zeros(batch, heads, k.shape[-1], v.shape[-1], dtype=torch.float64)
    read = []
    for t in range(time):
        memory = memory * decay[:, t, :, None, None]
        error = v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], memory)
        memory = memory + torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t, :, None] * error)
        read.append(torch.einsum("bhk,bhkv->bhv", q[:, t], memory) / math.sqrt(q.shape[-1]))
    y = _norm(torch.stack(read, 1), w["o_norm.weight"], 1e-6)
    gate = (x @ w["g_proj.weight"].T).unflatten(-1, (heads, -1))
    return (y * F.silu(gate)).flatten(2) @ w["o_proj.weight"].T


def _short_conv(x: torch.Tensor, weight: torch.Tensor, taps: int) -> torch.Tensor:
    padded = F.pad(x, (0, 0, taps - 1, 0))
    return F.silu(sum(padded[:, n : n + x.shape[1]] * weight[:, 0, n] for n in range(taps)))


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    inner = config.get("intermediate_size") or 256 * math.ceil(
        hidden * config["hidden_ratio"] / 384
    )
    shapes = {"model.embeddings.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for n in range(config["num_hidden_layers"]):
        kind = _kind(config, n)
        options = config["attn"] if n in _beside_gdn(config) else config
        block = {f"attn.{name}": shape for name, shape in _mixer(kind, options, hidden).items()}
        block |= {"attn_norm.weight": (hidden,), "mlp_norm.weight": (hidden,)}
        block |= {f"mlp.{p}_proj.weight": (inner, hidden) for p in ("gate", "up")}
        block["mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"model.layers.{n}.{name}": shape for name, shape in block.items()}
    return shapes


def _mixer(kind: str, o: dict[str, Any], hidden: int) -> dict[str, tuple[int, ...]]:
    heads = o["num_heads"]
    if kind == "gdn":
        widths = dict.fromkeys("qk", heads * o["head_dim"])
        widths["v"] = int(heads * o["head_dim"] * o["expand_v"])
        return {
            **{f"{p}_proj.weight": (width, hidden) for p, width in widths.items()},
            **{f"{p}_conv1d.weight": (width, 1, o["conv_size"]) for p, width in widths.items()},
            **{f"{p}_proj.weight": (heads, hidden) for p in "ab"},
            "g_proj.weight": (widths["v"], hidden),
            "o_proj.weight": (hidden, widths["v"]),
            "o_norm.weight": (widths["v"] // heads,),
            "A_log": (heads,),
            "dt_bias": (heads,),
        }
    dim = o["head_dim"] if kind == "nsa" else hidden // heads
    queries, keys = heads * dim, (o.get("num_kv_heads") or heads) * dim
    shapes: dict[str, tuple[int, ...]] = {
        "q_proj.weight": (queries, hidden),
        "k_proj.weight": (keys, hidden),
        "v_proj.weight": (keys, hidden),
        "o_proj.weight": (hidden, queries),
    }
    if kind == "nsa":
        shapes["g_proj.weight"] = (3 * heads, hidden)
    if kind == "lte":
        groups = o["num_kv_heads"] if o["routing_shared"] == "head" else 1
        width = 2 * dim
        for n, taps in enumerate(o["conv_size"]):
            shapes[f"router.conv_stack.convs.{n}.weight"] = (groups * width // 2, width, 1, taps)
            shapes[f"router.conv_stack.convs.{n}.bias"] = (groups * width // 2,)
            width //= 2
        shapes["router.conv_stack.proj.weight"] = (groups, width, 1, 1)
        shapes["router.conv_stack.proj.bias"] = (groups,)
    return shapes
