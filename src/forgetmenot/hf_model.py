"""Our language model as a transformers model: loading, saving, `generate()`."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from forgetmenot.errors import UserError
from forgetmenot.files import write_text
from forgetmenot.hf_cache import ForgetmenotCache
from forgetmenot.hf_config import ForgetmenotConfig
from forgetmenot.model import LanguageModel

# What lies beside saved weights: by it, `trust_remote_code=True` finds the package in a process
# that has not imported it.
MODULE = "modeling_forgetmenot"
MODULE_TEXT = '''"""Finds the model in the installed package forgetmenot."""

from forgetmenot.hf_config import ForgetmenotConfig
from forgetmenot.hf_model import ForgetmenotForCausalLM

__all__ = ["ForgetmenotConfig", "ForgetmenotForCausalLM"]
'''


class ForgetmenotForCausalLM(PreTrainedModel, GenerationMixin):
    """`forgetmenot.model.LanguageModel` under transformers' interface.

    Raises UserError for a configuration without a spec, or of a ProSG model.
    """

    config_class = ForgetmenotConfig
    base_model_prefix = "model"
    _is_stateful = True  # so that decoding which takes tokens back is refused
    # The loss knows `num_items_in_batch`, by which trainers average over accumulated batches.
    accepts_loss_kwargs = True

    def __init__(self, config: ForgetmenotConfig) -> None:
        super().__init__(config)
        if not config.spec:
            raise UserError("config.json: found no spec; allowed: the model spec of an export")
        if config.spec.get("prosg") is not None:
            raise UserError(
                "config.json: found a ProSG model, whose weights change with the prompt; "
                "allowed: plain models"
            )
        self.model = LanguageModel(config.spec)
        # Parameters that layers share: further name -> the name under which they are saved.
        first: dict[nn.Parameter, str] = {}
        names = self.named_parameters(remove_duplicate=False)
        saved = {name: first.setdefault(parameter, name) for name, parameter in names}
        self._tied_weights_keys = {name: to for name, to in saved.items() if name != to}
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: LanguageModel has initialised itself, and loading leaves nothing missing."""

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers, except that weights which do not fit the spec are an error."""
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            if info[what]:
                found = ", ".join(sorted(map(str, info[what]))[:4])
                raise UserError(f"{model.name_or_path}: the weights do not fit: {what} {found}")
        return (model, info) if output_loading_info else model

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """As in transformers, with the module that `trust_remote_code=True` runs beside it."""
        self.config.auto_map = {
            "AutoConfig": f"{MODULE}.{ForgetmenotConfig.__name__}",
            "AutoModelForCausalLM": f"{MODULE}.{ForgetmenotForCausalLM.__name__}",
        }
        write_text(Path(save_directory) / f"{MODULE}.py", MODULE_TEXT)
        super().save_pretrained(save_directory, *args, **kwargs)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """As `_tied_weights_keys`, which transformers would only heed beside tied embeddings."""
        return dict(self._tied_weights_keys)

    def get_input_embeddings(self) -> Any:
        """The embedding [V, D]."""
        return self.model.embed

    def get_output_embeddings(self) -> Any:
        """The head [V, D]; tied models have the embedding for it."""
        return self.model.embed if self.model.head is None else self.model.head

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Raise NotImplementedError."""
        raise NotImplementedError("resize_token_embeddings: the vocabulary is part of the spec")

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
    ) -> CausalLMOutputWithPast:
        """Logits [B, L, V] of the next token, float; the loss if there are labels.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, tokens seen + L], 1 = token. Padding stands left of a sequence's
                first token, or right of its last one if no cache is wanted.
            past_key_values: the cache of the tokens seen before; it is changed.
            labels: int64 [B, L], as input_ids (the shift happens here), -100 = not scored.
            use_cache: return a cache; by default `config.use_cache` when that can be, in eval mode.
            logits_to_keep: only the last n positions' logits (0 = all), or those indices.
            num_items_in_batch: divisor of the loss instead of the number of labels.

        Raises ValueError or TypeError for other padding and for a cache of another kind.
        """
        if not isinstance(past_key_values, ForgetmenotCache | None):
            found = type(past_key_values).__name__
            raise TypeError(f"past_key_values: found {found}; allowed: ForgetmenotCache, None")
        seen = 0 if past_key_values is None else past_key_values.seen
        mask_BL, right_padded = _padding(attention_mask, input_ids, seen)
        if right_padded and (use_cache or past_key_values is not None):
            raise ValueError(
                "attention_mask: found padding after a token, which would enter the cache; "
                "allowed: left padding, or use_cache=False"
            )
        cache = past_key_values
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and not right_padded
        if cache is None and use_cache:
            cache = ForgetmenotCache()
        # The loss needs all logits, and the model itself keeps the last ones only.
        last = logits_to_keep if labels is None and isinstance(logits_to_keep, int) else 0
        output = self.model(
            input_ids,
            None if cache is None else cache.state,
            mask_BL=mask_BL,
            need_state=cache is not None,
            logits_to_keep=last,
        )
        if cache is not None:
            cache.advance(output.state, input_ids)
        logits = output.logits_BLV
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch
            )
        if isinstance(logits_to_keep, int):
            logits = logits[:, -logits_to_keep:]  # -0 keeps all
        else:
            logits = logits[:, logits_to_keep]
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Start `generate()` from our own cache, as transformers' hold keys and values only."""
        kind = generation_config.cache_implementation
        if kind is not None:
            raise ValueError(f"cache_implementation: found {kind!r}; allowed: None")
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = ForgetmenotCache()


def register() -> None:
    """Make `AutoModelForCausalLM` load our configurations; again is harmless."""
    AutoModelForCausalLM.register(ForgetmenotConfig, ForgetmenotForCausalLM, exist_ok=True)


def _padding(
    attention_mask: torch.Tensor | None, input_ids_BL: torch.Tensor, seen: int
) -> tuple[torch.Tensor | None, bool]:
    """The mask [B, L] of left padding, or None, and whether there is right padding instead.

    Right padding needs no mask: in a causal model no token sees what follows it.
    """
    if attention_mask is None:
        return None, False
    batch, length = input_ids_BL.shape
    if attention_mask.shape != (batch, seen + length):
        found = tuple(attention_mask.shape)
        raise ValueError(
            f"attention_mask: found shape {found}; allowed: {(batch, seen + length)}, "
            "one column for each token so far"
        )
    mask_BL = attention_mask[:, seen:] != 0
    if bool(mask_BL.all()):
        return None, False
    if seen:
        raise ValueError(
            "attention_mask: found padding beside a cache; allowed: left padding before the "
            "first token, in the call that starts the sequences"
        )
    if not bool(mask_BL.any(1).all()):
        raise ValueError("attention_mask: found a row without tokens; allowed: one or more")
    before, after = mask_BL[:, :-1], mask_BL[:, 1:]
    if bool((before <= after).all()):
        return mask_BL, False
    if bool((before >= after).all()):
        return None, True
    raise ValueError(
        "attention_mask: found padding within a sequence, or left padding in one row and right "
        "padding in another; allowed: left padding, or right padding without a cache"
    )
