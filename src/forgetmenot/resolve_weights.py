"""How the weights of a variant come about: trained here, or fetched because others trained them."""

from typing import Any, NamedTuple

from forgetmenot import plugins
from forgetmenot.config import Model, Released, Study
from forgetmenot.model_spec import module_options

TRAIN_OPTIONS = plugins.PACKAGE_ROOT / "train" / "options.py"


class Weights(NamedTuple):
    """The stage that makes them, its spec and inputs, the modules it loads by name."""

    stage: str
    spec: dict[str, Any]
    inputs: dict[str, str]
    roots: set[str]
    init_from: str | None = None  # variant of the same study and seed to start from


def trained(
    study: Study,
    variant: str,
    model: Model,
    spec: dict[str, Any],
    streams: list[dict[str, Any]],
    device: str,
    where: str,
) -> Weights:
    """Weights that the stage `train` makes. Raises UserError for an option of the training."""
    options = study.train | model.train | study.train_overrides.get(variant, {})
    train_spec = {
        "model": spec,
        "train": module_options(TRAIN_OPTIONS, options, f"{where}.train"),
        "data": streams,
        "init_from": "init" if model.init_from else None,
        "trainable": model.trainable,
        "device": device,
    }
    inputs = {part["dataset"]: f"data/built/{part['dataset']}" for part in streams}
    builders = {f"forgetmenot.data.{part['builder']}" for part in streams}
    return Weights("train", train_spec, inputs, builders | model_roots(spec), model.init_from)


def fetched(source: Released, spec: dict[str, Any], tokenizer: str | None) -> Weights:
    """Weights that the stage `fetch` gets; theirs must be the tokenizer in folder `tokenizer`."""
    inputs = {} if tokenizer is None else {"tokenizer": tokenizer}
    fetch_spec = {"model": spec, **source.model_dump(exclude={"tokenizer"})}
    return Weights("fetch", fetch_spec, inputs, model_roots(spec))


def model_roots(spec: dict[str, Any]) -> set[str]:
    """The modules that a model of this spec loads by name."""
    roots = {f"forgetmenot.mixers.{layer[0]}" for layer in spec["layers"]}
    return roots | ({"forgetmenot.prosg.wrapper"} if spec["prosg"] else set())
