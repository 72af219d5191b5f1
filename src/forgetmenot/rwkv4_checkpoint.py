"""Models from RWKV-4's released `.pth` checkpoints (BlinkDL's layout, such as RWKV-4 Pile).

A file is a dictionary of tensors. D hidden width, V vocabulary, W inner width, N block:

    emb.weight, head.weight                                           [V, D]
    blocks.0.ln0, blocks.N.ln1, blocks.N.ln2, ln_out: .weight, .bias  [D]
    blocks.N.att: .time_mix_r, .time_mix_k, .time_mix_v               [1, 1, D]
    blocks.N.att: .time_decay, .time_first                            [D]
    blocks.N.att: .receptance, .key, .value, .output (.weight)        [D, D]
    blocks.N.ffn: .time_mix_r, .time_mix_k                            [1, 1, D]
    blocks.N.ffn: .receptance, .key, .value (.weight)                 [D, D], [W, D], [D, W]

What the model computes: arXiv 2305.13048; ProSG specification, section 6.1.
"""

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from forgetmenot import model as models
from forgetmenot.errors import UserError

NORM_EPS = 1e-5
BLOCK = re.compile(r"blocks\.(\d+)\.")
# Where each parameter of a block comes from: (mixer 0 or 1 of the block, its parameter): names.
# Mixes are kept as rows of one parameter.
PARTS = {
    (0, "mix_rkv"): ("att.time_mix_r", "att.time_mix_k", "att.time_mix_v"),
    (0, "decay"): ("att.time_decay",),
    (0, "bonus"): ("att.time_first",),
    (0, "receptance.weight"): ("att.receptance.weight",),
    (0, "key.weight"): ("att.key.weight",),
    (0, "value.weight"): ("att.value.weight",),
    (0, "out.weight"): ("att.output.weight",),
    (1, "mix_rk"): ("ffn.time_mix_r", "ffn.time_mix_k"),
    (1, "receptance.weight"): ("ffn.receptance.weight",),
    (1, "key.weight"): ("ffn.key.weight",),
    (1, "value.weight"): ("ffn.value.weight",),
}
EMBEDDING_NORM = ("blocks.0.ln0.weight", "blocks.0.ln0.bias")
SHOWN = 4  # faults that a message lists: an unfit file has them in every block


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pth` file, on the CPU; nothing but tensors and containers is unpickled.

    Raises UserError for a file that is missing, damaged or holds anything else.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except Exception as error:  # damage leads torch's reader to errors of any kind
        raise UserError(
            f"{path}: found damage, or other things than tensors ({type(error).__name__}); "
            "allowed: a .pth file of named tensors"
        ) from error
    tensors = isinstance(found, dict) and all(isinstance(x, torch.Tensor) for x in found.values())
    if not tensors or not all(isinstance(name, str) for name in found):
        raise UserError(
            f"{path}: found a {type(found).__name__} with other things than named tensors; "
            "allowed: {name: tensor}"
        )
    return dict(found)


def from_checkpoint(weights: dict[str, torch.Tensor], where: str = "weights") -> Any:
    """The model (LanguageModel) of a checkpoint's tensors: eval mode, CPU, float32.

    Layer norm 0, which follows the embedding, is worked into the embedding: it is a function of
    the token alone, and the output head has weights of its own.

    Args:
        weights: as in the file, any floating dtype (see the module).
        where: what to blame in messages, such as the file.

    Raises UserError for tensors that are missing, unknown, of another shape or dtype, or not
    finite, and for RWKV's other generations.
    """
    spec = _spec(weights, where)
    with torch.device("meta"):
        model = models.build(spec)
    sources = _sources(len(spec["layers"]) // 2)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    wanted = {
        part: shapes[ours][1:] if len(parts) > 1 else shapes[ours]
        for ours, parts in sources.items()
        for part in parts
    } | dict.fromkeys(EMBEDDING_NORM, (spec["hidden"],))
    faults = [f"missing {name} {list(wanted[name])}" for name in wanted if name not in weights]
    faults += [f"unknown {name}" for name in weights if name not in wanted]
    faults += [
        fault
        for name, shape in wanted.items()
        if name in weights and (fault := _misfit(name, weights[name], shape))
    ]
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(f"{where}: not an RWKV-4 checkpoint: {'; '.join(faults[:SHOWN])}{more}")
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parts = torch.stack([weights[part].squeeze() for part in sources[name]])
            parameter.copy_(parts.reshape(parameter.shape))
        scale, shift = (weights[name].double() for name in EMBEDDING_NORM)
        table_VD = weights["emb.weight"].double()
        model.embed.weight.copy_(F.layer_norm(table_VD, scale.shape, scale, shift, NORM_EPS))
    return model.eval()


def _spec(weights: dict[str, torch.Tensor], where: str) -> dict[str, Any]:
    """The model spec that the tensors' shapes tell. Raises UserError where they tell none."""
    later = next((name for name in weights if name.endswith("att.ln_x.weight")), None)
    if later is not None:
        raise UserError(f"{where}: found {later}, of RWKV-5 or later; allowed: RWKV-4")
    for name in ("emb.weight", "blocks.0.att.time_decay", "blocks.0.ffn.key.weight"):
        if name not in weights:
            raise UserError(f"{where}: not an RWKV-4 checkpoint: missing {name}")
    table, key = weights["emb.weight"], weights["blocks.0.ffn.key.weight"]
    for name, matrix in (("emb.weight", table), ("blocks.0.ffn.key.weight", key)):
        if matrix.dim() != 2 or not matrix.numel():
            found = list(matrix.shape)
            raise UserError(f"{where}: {name}: found shape {found}; allowed: a matrix")
    blocks = len({match[1] for name in weights if (match := BLOCK.match(name))})
    return {
        "hidden": table.shape[1],
        "vocab": table.shape[0],
        "layers": [["rwkv4_time", {}], ["rwkv4_channel", {"width": key.shape[0]}]] * blocks,
        "norm": "layernorm",
        "norm_eps": NORM_EPS,
        "tie_embeddings": False,
        "init_std": None,
        "prosg": None,
    }


def _sources(blocks: int) -> dict[str, tuple[str, ...]]:
    """The names in the file from which each of our parameters comes."""
    sources: dict[str, tuple[str, ...]] = {
        "embed.weight": ("emb.weight",),
        "head.weight": ("head.weight",),
    }
    norms = {"final_norm": "ln_out"}
    for n in range(blocks):
        norms |= {f"norms.{2 * n}": f"blocks.{n}.ln1", f"norms.{2 * n + 1}": f"blocks.{n}.ln2"}
        for (mixer, name), parts in PARTS.items():
            theirs = tuple(f"blocks.{n}.{part}" for part in parts)
            sources[f"layers.{2 * n + mixer}.{name}"] = theirs
    for ours, norm in norms.items():
        sources |= {f"{ours}.{kind}": (f"{norm}.{kind}",) for kind in ("weight", "bias")}
    return sources


def _misfit(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> str:
    """What is wrong with a tensor; empty if nothing. Vectors may come as [1, 1, D]."""
    allowed = (shape, (1, 1, *shape)) if len(shape) == 1 else (shape,)
    if tuple(tensor.shape) not in allowed:
        return f"{name}: found shape {list(tensor.shape)}, allowed: {list(shape)}"
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        return f"{name}: found {tensor.dtype}, {tensor.layout}, allowed: dense floating point"
    return "" if bool(tensor.isfinite().all()) else f"{name}: found values that are not finite"
