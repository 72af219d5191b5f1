"""ProSG on any torch model with a recurrent state (docs/prosg.md)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forgetmenot.model import LanguageModel, Output, State
from forgetmenot.prosg.apply import Targets
from forgetmenot.prosg.backbone import Backbone
from forgetmenot.prosg.options import Options
from forgetmenot.prosg.readout import Read, layout_of, unit_heads, wide
from forgetmenot.prosg.wrapper import ProSG

Run = Callable[[Any, Tensor, Any], tuple[Tensor, Any]]


class Foreign(nn.Module):
    """A model that is not ours under the interface of ours, as far as ProSG needs it."""

    def __init__(self, model: nn.Module, run: Run) -> None:
        super().__init__()
        self.model, self.run = model, run
        self.spec: dict[str, Any] = {}

    def forward(
        self,
        input_ids_BL: Tensor,
        state: State | None = None,
        *,
        mask_BL: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        need_state: bool = True,
        logits_to_keep: int | Tensor = 0,
    ) -> Output:
        """`run` with the model's own state. Raises ValueError for padding and packing."""
        for name, given in (("mask", mask_BL), ("cu_seqlens", cu_seqlens)):
            if given is not None:
                raise ValueError(f"{name}: found one; allowed: none, as `run` does not take it")
        logits_BLV, new = self.run(self.model, input_ids_BL, state.layers[0] if state else None)
        if isinstance(logits_to_keep, Tensor):
            kept = logits_BLV.flatten(0, 1).index_select(0, logits_to_keep)
        else:
            kept = logits_BLV[:, -logits_to_keep:]  # -0 keeps all
        return Output(kept, State((new,)) if need_state else None, [])

    def init_parameters(self, seed: int) -> None:
        """Nothing: the model's weights are its owner's."""


def wrap(
    model: nn.Module,
    *,
    run: Run | None = None,
    read: Callable[[Any], Sequence[Read]] | None = None,
    targets: Targets | None = None,
    example: Tensor | None = None,
    mixers: Sequence[nn.Module] = (),
    **options: Any,
) -> ProSG:
    """ProSG on `model`: run a prompt, `commit_prompt` its state, generate from what that gives.

    A `LanguageModel` needs nothing but options. For another module:

    Args:
        model: the module; its weights are used as they are.
        run: `run(model, input_ids, state)` -> (logits [B, L, V], state); `state` is None at a
            sequence's start, otherwise what an earlier call returned, and must be left as it was.
        read: `read(state)` -> one `Read` a block: vectors [B, P, D], a matrix [B, H, V, K] with the
            value axis first, or both. Matrices are normalised here.
        targets: of every block the `nn.Linear` maps that change, by name.
        example: token ids [B, L] of any prompt; run once, to learn the state's shapes.
        mixers: of every block the module that a stored state's read is added to, from [B, L, D] to
            the same (alone or first of a tuple); only for `frozen_read` and `offset`.
        options: fields of `Options`.

    Returns:
        a `ProSG`, whose `generator` is new; train `wrapped.generator.parameters()`, or all. Update
        and state travel together in its `State`.

    Raises:
        TypeError: an argument that is missing or of the wrong type.
        ValueError: options that do not fit the model.
    """
    if isinstance(model, LanguageModel):
        return ProSG(model, Options(**options))
    if run is None or read is None or targets is None or example is None:
        needed = {"run": run, "read": read, "targets": targets, "example": example}
        missing = ", ".join(name for name, value in needed.items() if value is None)
        raise TypeError(f"wrap: found no {missing}; allowed: all four for a {type(model).__name__}")
    _check_targets(targets)
    own_read = read

    def normalised(layers: tuple[Any, ...]) -> list[Read]:
        return [_normalised(block) for block in own_read(layers[0])]

    base: Any = Foreign(model, run)
    with torch.no_grad():
        reads = normalised(base(example).state.layers)
    if len(reads) != len(targets):
        found = f"{len(targets)} blocks beside {len(reads)} of `read`"
        raise ValueError(f"targets: found {found}; allowed: as many")
    if mixers and len(mixers) != len(targets):
        raise ValueError(f"mixers: found {len(mixers)}; allowed: {len(targets)} or none")
    hidden = next(iter(next(block for block in targets if block).values())).in_features
    backbone = Backbone(targets, list(mixers), hidden, layout_of(reads), normalised)
    wrapped = ProSG(base, Options(**options), backbone)
    wrapped.generator.to(example.device)
    return wrapped


def _check_targets(targets: Sequence[Mapping[str, nn.Module]]) -> None:
    for n, block in enumerate(targets):
        for name, linear in block.items():
            if not isinstance(linear, nn.Linear):
                found = type(linear).__name__
                raise TypeError(f"targets.{n}.{name}: found {found}; allowed: nn.Linear")
    if not any(targets):
        raise ValueError("targets: found none; allowed: linear maps of one block or more")


def _normalised(read: Read) -> Read:
    read = read.map(wide)
    matrix = read.matrix_BHVK
    return read if matrix is None else read._replace(matrix_BHVK=unit_heads(matrix))
