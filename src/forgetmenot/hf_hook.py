"""Makes transformers know our model type, without importing transformers for it.

Importing transformers takes seconds that most jobs need not spend. So the registration waits for
the module that holds the registry: transformers itself imports it late, with the first Auto class.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

REGISTRY = "transformers.models.auto.configuration_auto"


def install() -> None:
    """Register our model type now if transformers' registry is there, else once it is imported."""
    if REGISTRY in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the registry's module as the other finders do, and registers after it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            # The loader belongs to this one module: only its last step changes.
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register()

            loader.exec_module = exec_module
        return spec


def _register() -> None:
    try:
        importlib.import_module("forgetmenot.hf_config").register()
    except Exception as error:  # whoever only uses transformers must not fail because of us
        warnings.warn(f"forgetmenot's models are unknown to transformers: {error}", stacklevel=2)
