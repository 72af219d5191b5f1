"""Models from weights in the names of LTE's reference implementation and its released checkpoints.

Names, shapes and meanings are those that the reference's own state dictionaries show; what the
models compute is section 1 to 4 of the LTE specification.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from forgetmenot import model as models
from forgetmenot.errors import UserError
from forgetmenot.plugins import load as load_plugin
from forgetmenot.released_config import model_spec

# What the reference's sparsity control remembers between training steps.
BUFFERS = {"model.l1_lambda", "model.num_kept"}

Tensors = list[torch.Tensor]


class Source(NamedTuple):
    """Where one parameter of ours comes from: reference names, their shapes, how they join.

    `copies` are further names under which the reference may save the same tensor.
    """

    shapes: dict[str, tuple[int, ...]]
    join: Callable[[Tensors], torch.Tensor]
    copies: tuple[str, ...] = ()


def from_reference(
    config: dict[str, Any], state_dict: dict[str, torch.Tensor], where: str = "config"
) -> models.LanguageModel:
    """Our model with the reference's configuration and weights: eval mode, CPU, float32.

    Args:
        config: the reference's `config.json`, or the arguments of its configuration class.
        state_dict: parameters by the reference's names, any floating dtype.
        where: what to blame in messages, such as the file of the configuration.

    Raises UserError for a configuration that ours cannot do and for parameters that are missing,
    unknown or of another shape (all of them are listed).
    """
    spec = model_spec(config, where)
    try:
        with torch.device("meta"):
            model = models.build(spec)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    sources = _sources(spec)
    found = _matched(sources, state_dict, spec["tie_embeddings"])
    model.to_empty(device="cpu")
    with torch.no_grad():
        # Here a parameter that layers share comes once, under its first name.
        for name, parameter in model.named_parameters():
            source = sources[name]
            parameter.copy_(source.join([found[key].float() for key in source.shapes]))
    built: models.LanguageModel = model.eval()
    return built


def _matched(
    sources: dict[str, Source], state_dict: dict[str, torch.Tensor], tied: bool
) -> dict[str, torch.Tensor]:
    """The reference's tensors by the names in `sources`, all checked."""
    found, faults = {}, []
    known = set(BUFFERS)
    for source in sources.values():
        for name, shape in source.shapes.items():
            names = (name, *source.copies)
            known.update(names)
            given = [key for key in names if key in state_dict]
            if not given:
                faults.append(f"missing {name} {list(shape)}")
                continue
            found[name] = state_dict[given[0]]
            for key in given:
                faults += _misfit(key, state_dict[key], shape, found[name])
    if tied and "lm_head.weight" in state_dict:
        # Tied weights are one tensor, which a state dictionary may list twice.
        known.add("lm_head.weight")
        embedding = found.get("model.embeddings.weight")
        if embedding is not None:
            head = state_dict["lm_head.weight"]
            faults += _misfit("lm_head.weight", head, tuple(embedding.shape), embedding)
    faults += [f"unknown {name}" for name in state_dict if name not in known]
    if faults:
        raise UserError("state_dict: does not fit the configuration: " + "; ".join(faults))
    return found


def _misfit(
    name: str, tensor: torch.Tensor, shape: tuple[int, ...], same_as: torch.Tensor
) -> list[str]:
    if not tensor.is_floating_point():
        return [f"{name}: found dtype {tensor.dtype}, allowed: floating point"]
    if tuple(tensor.shape) != shape:
        return [f"{name}: found shape {list(tensor.shape)}, the configuration asks for {[*shape]}"]
    if tensor is not same_as and not torch.equal(tensor.float(), same_as.float()):
        return [f"{name}: found values that differ from those of its shared copy"]
    return []


def _sources(spec: dict[str, Any]) -> dict[str, Source]:
    """All parameters of a spec's model, with where each comes from."""
    hidden, vocab = spec["hidden"], spec["vocab"]
    sources = {
        "embed.weight": _same("model.embeddings.weight", vocab, hidden),
        "final_norm.weight": _same("model.norm.weight", hidden),
    }
    if not spec["tie_embeddings"]:
        sources["head.weight"] = _same("lm_head.weight", vocab, hidden)
    makers = {
        "attention": _attention,
        "lte": _attention,
        "nsa": _nsa,
        "gdn": _gdn,
        "swiglu": _swiglu,
    }
    mixers = [mixer for mixer, _ in spec["layers"]]
    routers = [f"model.layers.{n // 2}.attn." for n, mixer in enumerate(mixers) if mixer == "lte"]
    for n, (mixer, values) in enumerate(spec["layers"]):
        # A block of the reference is two layers of ours: a token mixer and a feed-forward layer.
        block = f"model.layers.{n // 2}."
        part, norm = ("mlp.", "mlp_norm") if mixer == "swiglu" else ("attn.", "attn_norm")
        options = load_plugin("mixers", mixer).Options(**values)
        parameters = makers[mixer](block + part, hidden, options)
        if mixer == "lte":
            shared = options.router_shared == "all"
            if not shared or block + part == routers[0]:
                parameters |= _scorer(routers if shared else [block + part], options)
        sources |= {f"layers.{n}.{name}": source for name, source in parameters.items()}
        sources[f"norms.{n}.weight"] = _same(f"{block}{norm}.weight", hidden)
    return sources


def _same(name: str, *shape: int) -> Source:
    return Source({name: shape}, lambda tensors: tensors[0])


def _attention(prefix: str, hidden: int, o: Any) -> dict[str, Source]:
    queries, keys = o.heads * o.head_dim, o.kv_heads * o.head_dim
    return {
        "q.weight": _same(f"{prefix}q_proj.weight", queries, hidden),
        "k.weight": _same(f"{prefix}k_proj.weight", keys, hidden),
        "v.weight": _same(f"{prefix}v_proj.weight", keys, hidden),
        "out.weight": _same(f"{prefix}o_proj.weight", hidden, queries),
    }


def _nsa(prefix: str, hidden: int, o: Any) -> dict[str, Source]:
    gate = _same(f"{prefix}g_proj.weight", 3 * o.heads, hidden)
    return _attention(prefix, hidden, o) | {"gate.weight": gate}


def _gdn(prefix: str, hidden: int, o: Any) -> dict[str, Source]:
    keys, values = o.heads * o.key_dim, o.heads * o.value_dim
    widths = {"q": keys, "k": keys, "v": values}
    return {
        "qkv.weight": Source(
            {f"{prefix}{x}_proj.weight": (width, hidden) for x, width in widths.items()},
            lambda tensors: torch.cat(tensors),
        ),
        "conv_weight": Source(
            {f"{prefix}{x}_conv1d.weight": (width, 1, o.conv) for x, width in widths.items()},
            lambda tensors: torch.cat(tensors).squeeze(1),
        ),
        "a.weight": _same(f"{prefix}a_proj.weight", o.heads, hidden),
        "b.weight": _same(f"{prefix}b_proj.weight", o.heads, hidden),
        "gate.weight": _same(f"{prefix}g_proj.weight", values, hidden),
        "A_log": _same(f"{prefix}A_log", o.heads),
        "dt_bias": _same(f"{prefix}dt_bias", o.heads),
        "norm.weight": _same(f"{prefix}o_norm.weight", o.value_dim),
        "out.weight": _same(f"{prefix}o_proj.weight", hidden, values),
    }


def _scorer(prefixes: list[str], o: Any) -> dict[str, Source]:
    """The scorer of one layer, or of all: `prefixes` are those under which it may be saved.

    The reference's is a stack of 2-D convolutions of height 1, with one group a KV head if each
    has weights of its own, ours a batch of matrices over shifted copies: [S * O, I, 1, K] becomes
    [S, K * I, O].
    """
    groups = o.kv_heads if o.router_shared == "head" else 1
    layers = [*((f"convs.{n}", taps) for n, taps in enumerate(o.kernels)), ("proj", 1)]
    sources = {}
    width = 2 * o.head_dim
    for name, taps in layers:
        out = 1 if name == "proj" else width // 2
        ours = f"scorer.{name}" if name != "proj" else "scorer.project"
        for kind, shape, join in (
            ("weight", (groups * out, width, 1, taps), _headwise(groups)),
            ("bias", (groups * out,), lambda tensors: tensors[0].reshape(groups, -1)),
        ):
            first, *others = (f"{p}router.conv_stack.{name}.{kind}" for p in prefixes)
            sources[f"{ours}.{kind}"] = Source({first: shape}, join, tuple(others))
        width = out
    return sources


def _headwise(groups: int) -> Callable[[Tensors], torch.Tensor]:
    def join(tensors: Tensors) -> torch.Tensor:
        weight_OIK = tensors[0].squeeze(2)
        weight_SOIK = weight_OIK.reshape(groups, -1, *weight_OIK.shape[1:])
        return weight_SOIK.permute(0, 3, 2, 1).flatten(1, 2)

    return join


def _swiglu(prefix: str, hidden: int, o: Any) -> dict[str, Source]:
    return {
        "gate.weight": _same(f"{prefix}gate_proj.weight", o.width, hidden),
        "up.weight": _same(f"{prefix}up_proj.weight", o.width, hidden),
        "down.weight": _same(f"{prefix}down_proj.weight", hidden, o.width),
    }
