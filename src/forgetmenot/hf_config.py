"""The configuration that transformers sees: our plain model spec, and the sizes others ask for."""

import importlib
from typing import Any

from transformers.configuration_utils import PreTrainedConfig


class ForgetmenotConfig(PreTrainedConfig):
    """`config.json` of an exported model.

    `spec` is the plain model spec of `model.py`; vocab_size, hidden_size, num_hidden_layers and
    tie_word_embeddings only repeat it for tools that read them. `use_cache` is the default of the
    model's forward pass in eval mode.
    """

    model_type = "forgetmenot"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  # as transformers has it

    def __init__(
        self, spec: dict[str, Any] | None = None, use_cache: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.spec = dict(spec or {})
        self.use_cache = use_cache
        self.vocab_size = self.spec.get("vocab")
        self.hidden_size = self.spec.get("hidden")
        self.num_hidden_layers = len(self.spec.get("layers", ()))
        self.tie_word_embeddings = self.spec.get("tie_embeddings", False)
        # Whoever has a configuration is about to load a model. Earlier is no place for it: the
        # registry's own import must not pay for importing torch and all of transformers' models.
        importlib.import_module("forgetmenot.hf_model").register()


def register() -> None:
    """Make `AutoConfig` read configurations of our model type; again is harmless."""
    # not above: importing the registry calls this function (hf_hook.py)
    from transformers import AutoConfig

    AutoConfig.register(ForgetmenotConfig.model_type, ForgetmenotConfig, exist_ok=True)
