"""The language model: embedding, pre-norm residual layers of mixers, head. Nothing mixer-specific.

A model spec is plain JSON (`model_spec.py` makes it from the configuration):
`{"hidden", "vocab", "layers": [[mixer, options], ...], "norm", "norm_eps", "tie_embeddings",
"init_std", "prosg"}`. Token and channel mixers stand in one list, each behind a norm of its own.
"""

import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import nn

from forgetmenot.errors import UserError
from forgetmenot.files import write_bytes, write_json
from forgetmenot.fuse import fused
from forgetmenot.mixers.base import Mixer, Place, start_packing, unpacked
from forgetmenot.plugins import load as load_plugin
from forgetmenot_kernels.packing import Packing


class State(NamedTuple):
    """What a model remembers: one state a layer, and ProSG's update of the weights, if any."""

    layers: tuple[Any, ...]
    update: Any = None


class Output(NamedTuple):
    """Logits [B, L, V], the state after the last token if wanted, and each layer's aux."""

    logits_BLV: torch.Tensor
    state: State | None
    aux: list[dict[str, torch.Tensor]]

    @property
    def logits(self) -> torch.Tensor:
        """`logits_BLV` by the name that is usual elsewhere."""
        return self.logits_BLV


class LanguageModel(nn.Module):
    """A causal language model over mixers under one contract (`mixers/base.py`)."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        hidden, layers = spec["hidden"], spec["layers"]
        residual_init = spec.get("residual_init", "none")
        self.embed = nn.Embedding(spec["vocab"], hidden)
        self.layers = nn.ModuleList(
            _mixer(name, options, Place(hidden, n, len(layers), spec["init_std"], residual_init))
            for n, (name, options) in enumerate(layers)
        )
        firsts: dict[str, Mixer] = {}
        for (name, _), mixer in zip(layers, self.mixers(), strict=True):
            mixer.share(firsts.setdefault(name, mixer))
        self.norms = nn.ModuleList(_norm(spec) for _ in layers)
        self.final_norm = _norm(spec)
        tied = spec["tie_embeddings"]
        self.head = None if tied else nn.Linear(hidden, spec["vocab"], bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise every parameter from torch's current random state."""
        std = self.spec["init_std"] or self.spec["hidden"] ** -0.5
        nn.init.normal_(self.embed.weight, std=std)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=std)
        for module in (*self.norms, self.final_norm, *self.layers):
            module.reset_parameters()

    def init_parameters(self, seed: int) -> None:
        """Initialise every parameter from `seed` alone, leaving torch's random state as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.reset_parameters()

    def forward(
        self,
        input_ids_BL: torch.Tensor,
        state: State | None = None,
        *,
        mask_BL: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | Packing | None = None,
        need_state: bool = True,
        logits_to_keep: int | torch.Tensor = 0,
    ) -> Output:
        """Logits of the next token at every position, or at some only.

        Args:
            input_ids_BL: int64 token ids.
            state: of the tokens before; None starts a sequence. It is used up (`mixers/base.py`).
            mask_BL: True = token; left padding only, and only at a sequence's start. Logits at
                padding are 0.
            cu_seqlens: integer [N + 1], borders of documents packed into one row, each of which
                starts from nothing; the state is that of N sequences.
            need_state: False spares the work for the state; None is returned for it.
            logits_to_keep: the head runs on the last so many positions only, and logits are
                [B, logits_to_keep, V]; 0 = on all; an int64 tensor [N] = on these places of the
                flattened [B x L] (not beside a mask), and logits are [N, V].

        Raises ValueError for a ProSG update in the state and for fewer than 0 logits to keep.
        """
        if isinstance(logits_to_keep, int) and logits_to_keep < 0:
            raise ValueError(f"logits_to_keep: found {logits_to_keep}; allowed: 0 or more")
        if isinstance(logits_to_keep, torch.Tensor) and mask_BL is not None:
            raise ValueError("logits_to_keep: found places beside a mask; allowed: a number")
        if state is not None and state.update is not None:
            raise ValueError("state: found a ProSG update; allowed: a state of this plain model")
        packing = start_packing(input_ids_BL, state, mask_BL, cu_seqlens)
        x_BLD = self.embed(input_ids_BL if mask_BL is None else input_ids_BL[mask_BL][None])
        y_BLD = None
        states: list[Any] = []
        aux = []
        before = state.layers if state else (None,) * len(self.layers)
        for norm, mixer, layer_state in zip(self.norms, self.layers, before, strict=True):
            x_BLD, normed_BLD = _added(x_BLD, y_BLD, norm)
            y_BLD, layer_state, layer_aux = mixer(
                normed_BLD, layer_state, cu_seqlens=packing, need_state=need_state
            )
            states.append(layer_state)
            aux.append(layer_aux)
        head = self.embed.weight if self.head is None else self.head.weight
        _, x_BLD = _added(x_BLD, y_BLD, self.final_norm)
        if isinstance(logits_to_keep, torch.Tensor):
            logits = F.linear(x_BLD.flatten(0, 1).index_select(0, logits_to_keep), head)
        elif logits_to_keep:
            # Unpacked before the head, which has no bias: zeros at padding stay zeros.
            x_BLD = x_BLD if mask_BL is None else unpacked(x_BLD, mask_BL)
            logits = F.linear(x_BLD[:, -logits_to_keep:], head)
        else:
            logits = F.linear(x_BLD, head)
            logits = logits if mask_BL is None else unpacked(logits, mask_BL)
        return Output(logits, State(tuple(states)) if need_state else None, aux)

    @property
    def base(self) -> "LanguageModel":
        """The plain language model: itself. ProSG's wrapper gives the model inside."""
        return self

    def commit_prompt(self, state: State) -> State:
        """What generation starts from once the prompt is read: here, the state itself."""
        return state

    def update_penalty(self, state: State) -> torch.Tensor:
        """Squared size of the update of the weights that `state` carries: none here."""
        return self.embed.weight.new_zeros(())

    def state_bytes(self, length: int) -> int:
        """Bytes of the state of one sequence after `length` tokens, float32."""
        return sum(mixer.state_bytes(length) for mixer in self.mixers())

    def flops(self, context: int) -> int:
        """Forward operations (2 a multiply-add) of one token that has `context` before it.

        See `Mixer.flops` for what counts; the head does, looking up an embedding does not.
        """
        head = 2 * self.embed.weight.numel()
        return head + sum(mixer.flops(context) for mixer in self.mixers())

    def mixers(self) -> list[Mixer]:
        """The layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, Mixer)]


def _added(
    x_BLD: torch.Tensor, y_BLD: torch.Tensor | None, norm: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of x and y, and its norm as linear maps read it."""
    assert isinstance(norm, nn.RMSNorm | nn.LayerNorm)
    device = x_BLD.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    # Rounded once for all maps: under autocast each would cast a copy of its own.
    dtype = torch.get_autocast_dtype(device) if autocast else x_BLD.dtype
    if y_BLD is None:
        return x_BLD, norm(x_BLD).to(dtype)
    bias = norm.bias if isinstance(norm, nn.LayerNorm) else None
    rows = (x_BLD.flatten(0, 1), y_BLD.flatten(0, 1))
    x, normed = _add_and_norm(*rows, norm.weight, bias, norm.eps, dtype)
    return x.view_as(x_BLD), normed.view_as(x_BLD)


@fused
def _add_and_norm(
    x_ND: torch.Tensor,
    y_ND: torch.Tensor,
    weight_D: torch.Tensor,
    bias_D: torch.Tensor | None,
    eps: float | None,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    x_ND = x_ND + y_ND
    if bias_D is None:
        normed_ND = F.rms_norm(x_ND, weight_D.shape, weight_D, eps)
    else:
        normed_ND = F.layer_norm(x_ND, weight_D.shape, weight_D, bias_D, eps or 0.0)
    return x_ND, normed_ND.to(dtype)


def _mixer(name: str, options: dict[str, Any], place: Place) -> Mixer:
    module = load_plugin("mixers", name)
    return module.Mixer(place, module.Options(**options))


def _norm(spec: dict[str, Any]) -> nn.Module:
    kinds = {"rmsnorm": nn.RMSNorm, "layernorm": nn.LayerNorm}
    return kinds[spec.get("norm", "rmsnorm")](spec["hidden"], eps=spec["norm_eps"])


def build(spec: dict[str, Any]) -> Any:
    """The model of a spec: a LanguageModel, inside ProSG's wrapper when the spec asks for it."""
    model = LanguageModel(spec)
    if spec.get("prosg") is None:
        return model
    # by name, so that the code hash of plain models does not depend on it
    prosg = importlib.import_module("forgetmenot.prosg.wrapper")
    return prosg.ProSG(model, prosg.Options(**spec["prosg"]))


def save(model: Any, folder: Path) -> None:
    """Write `config.json` (the spec) and `model.safetensors`."""
    write_json(folder / "config.json", model.spec)
    # each shared parameter once, under its first name
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    write_bytes(folder / "model.safetensors", to_bytes(tensors))


def load(folder: Path) -> Any:
    """The model saved in `folder`, in eval mode. Raises UserError naming a file that is unfit."""
    try:
        spec = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'}: not a readable model spec ({error})") from error
    model = build(spec)
    load_weights(model, folder)
    return model.eval()


def load_weights(model: Any, folder: Path) -> None:
    """Load `model.safetensors` of `folder` into a model, or into `model.base` alone.

    Raises UserError when the file is unreadable or its parameters are not the model's.
    """
    path = folder / "model.safetensors"
    try:
        found = load_file(path)
        unknown = set(found) - {name for name, _ in model.named_parameters(remove_duplicate=False)}
        missing = {name for name, _ in model.named_parameters()} - set(found)
        if unknown or missing:
            raise RuntimeError(f"unknown: {sorted(unknown)}, missing: {sorted(missing)}")
        model.load_state_dict(found, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: not these weights ({error})") from error
