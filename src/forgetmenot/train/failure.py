"""The dump of a step whose loss or gradient is not finite."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save as save_arrays
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from forgetmenot.files import write_bytes, write_json


def first_non_finite(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """Run `forward` with hooks; name the first submodule whose output is not finite, or None.

    Submodules finish before the modules that hold them, so the name is the innermost.
    """
    found: list[str] = []

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def check(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and not all(_finite(leaf) for leaf in tree_leaves(output)):
                found.append(name or type(model).__name__)

        return check

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _finite(leaf: Any) -> bool:
    return (
        not isinstance(leaf, Tensor)
        or not leaf.is_floating_point()
        or bool(torch.isfinite(leaf).all())
    )


def dump(
    path: Path,
    *,
    model: nn.Module,
    forward: Callable[[], Any],
    values: dict[str, Any],
    arrays: dict[str, np.ndarray[Any, Any]],
) -> None:
    """Write `<path>.json` and the batch as `<path>.safetensors`.

    The JSON holds `values` (step, stream, loss, gradient norm), the first layer with a non-finite
    output in a second forward pass, and the parameters and gradients that are not finite.
    """
    parameters = dict(model.named_parameters())
    report = {
        **values,
        "parameters": [name for name, p in parameters.items() if not _finite(p)],
        "gradients": [name for name, p in parameters.items() if not _finite(p.grad)],
        "layer": first_non_finite(model, forward),
        "batch": f"{path.name}.safetensors",
    }
    contiguous = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
    write_bytes(path.with_name(f"{path.name}.safetensors"), save_arrays(contiguous))
    write_json(path.with_name(f"{path.name}.json"), report)
