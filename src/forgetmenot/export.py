"""Writes a trained model and its tokenizer as a folder that Hugging Face's tools load."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from forgetmenot import model as models
from forgetmenot.data.tokenizer_folder import load_tokenizer, read_tokenizer_meta
from forgetmenot.errors import UserError
from forgetmenot.files import write_json
from forgetmenot.hf_config import ForgetmenotConfig
from forgetmenot.hf_model import ForgetmenotForCausalLM


def export(model_folder: Path, tokenizer_folder: Path | None, out: Path) -> None:
    """Write `out`: config.json, model.safetensors, generation_config.json, and the tokenizer.

    Args:
        model_folder: a training output (config.json, the plain spec, and model.safetensors).
        tokenizer_folder: what a tokenizer builder wrote; None exports the model alone.
        out: a folder that is not there yet, or empty; it appears complete or not at all.

    Raises UserError for a folder that is unfit, a ProSG model, a tokenizer with more tokens than
    the model, and an `out` that holds files.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: found files there; allowed: a new or an empty folder")
    model = _wrapped(model_folder)
    meta = None if tokenizer_folder is None else read_tokenizer_meta(tokenizer_folder)
    if meta is not None and meta["vocab_size"] > model.config.vocab_size:
        raise UserError(
            f"{tokenizer_folder}: found {meta['vocab_size']} tokens; allowed: at most the "
            f"{model.config.vocab_size} of the model in {model_folder}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        if tokenizer_folder is not None and meta is not None:
            _write_tokenizer(tokenizer_folder, meta, partial)
            model.generation_config = _generation_config(meta)
        model.save_pretrained(partial)
        partial.chmod(0o755)  # mkdtemp gives 0700, which hides the folder from a shared group
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _wrapped(model_folder: Path) -> ForgetmenotForCausalLM:
    """The model of a training output under transformers' interface, its weights held once."""
    model = models.load(model_folder)
    try:
        with torch.device("meta"):
            wrapped = ForgetmenotForCausalLM(ForgetmenotConfig(spec=model.spec))
    except UserError as error:
        raise UserError(f"{model_folder}: {error}") from error
    wrapped.model = model
    return wrapped.eval()


def _write_tokenizer(tokenizer_folder: Path, meta: dict[str, Any], out: Path) -> None:
    """The tokenizer's definition, and settings that make transformers encode as we do."""
    tokenizer = load_tokenizer(tokenizer_folder)
    tokens = {key: tokenizer.id_to_token(meta[f"{key}_id"]) for key in ("bos", "eos", "pad")}
    shutil.copyfile(tokenizer_folder / "tokenizer.json", out / "tokenizer.json")
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,  # text that spells one is ordinary text
            "padding_side": "left",
            **{f"{key}_token": token for key, token in tokens.items()},
        },
    )


def _generation_config(meta: dict[str, Any]) -> GenerationConfig:
    """Generation ends at EOS, and at BOS: packed training text separates documents by BOS alone."""
    return GenerationConfig(
        bos_token_id=meta["bos_id"],
        eos_token_id=sorted({meta["eos_id"], meta["bos_id"]}),
        pad_token_id=meta["pad_id"],
    )
