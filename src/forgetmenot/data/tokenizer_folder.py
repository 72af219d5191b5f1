"""The folder that every tokenizer builder writes: tokenizer.json, tokenizer_config.json, meta.json.

tokenizer.json alone defines the token ids; tokenizer_config.json lets other tools load the same
folder by name; meta.json says vocab_size, bos_id, eos_id and pad_id.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetmenot.errors import UserError
from forgetmenot.files import write_json, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def save_tokenizer(
    folder: Path, tokenizer: "Tokenizer", bos: str, eos: str, pad: str, notes: dict[str, Any]
) -> None:
    """Write the folder; `bos`, `eos` and `pad` are the special tokens' texts, `notes` go to meta.

    Raises UserError if a special token is not in the vocabulary.
    """
    ids = {"bos_id": bos, "eos_id": eos, "pad_id": pad}
    meta: dict[str, Any] = {"vocab_size": tokenizer.get_vocab_size()} | notes
    for key, token in ids.items():
        meta[key] = tokenizer.token_to_id(token)
        if meta[key] is None:
            raise UserError(f"tokenizer: {token} is not in the vocabulary")
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "meta.json", meta)


def load_tokenizer(folder: Path) -> "Tokenizer":
    """The tokenizer of a folder with tokenizer.json (a tokenizer's or a token dataset's).

    It puts the BOS token before each text and nothing behind it. Text that happens to spell a
    special token, such as "</s>", is encoded as ordinary text. Raises UserError if the file is
    missing or unreadable.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder}: no tokenizer.json there")
    text = path.read_text(encoding="utf-8")
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception for every defect
        raise UserError(f"{path}: not a tokenizer ({error})") from error
    tokenizer.encode_special_tokens = True
    return tokenizer


def read_tokenizer_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a tokenizer folder. Raises UserError if a key is missing."""
    path = folder / "meta.json"
    meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for key in ("vocab_size", "bos_id", "eos_id", "pad_id"):
        if key not in meta:
            raise UserError(f"{path}: no {key}; expected the folder of a tokenizer builder")
    return meta
