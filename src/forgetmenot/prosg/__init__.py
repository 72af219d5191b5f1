"""ProSG from scratch, as its abstract describes the method; the details are ours."""

import importlib
from typing import Any


def wrap(model: Any, **arguments: Any) -> Any:
    """ProSG on a model, this project's or another: see `forgetmenot.prosg.foreign.wrap`."""
    # by name, so that the code hash of a job does not depend on what only this entry needs
    return importlib.import_module("forgetmenot.prosg.foreign").wrap(model, **arguments)
