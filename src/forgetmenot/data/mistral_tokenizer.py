"""The Mistral v1 tokenizer: SentencePiece BPE, 32,000 pieces, BOS 1, EOS 2.

LTE's training recipe takes the tokenizer of an earlier 32,000-piece checkpoint, which is inferred
to be this one (LTE specification, section 5); the two files have not been compared.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forgetmenot.data.package import read_package
from forgetmenot.data.tokenizer_folder import save_tokenizer
from forgetmenot.errors import UserError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

PACKAGE = "mistral-common"
MEMBER = "mistral_common/data/tokenizer.model.v1"
BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 1, 2
SPACE = "\u2581"  # how SentencePiece writes a space
# Texts on which the converted tokenizer must agree with SentencePiece itself.
PROBES = (
    "The memory of a fixed-size state fades; attention keeps every token.",
    "In 1790 there were 3,929,214 people.\n\nTabs\tand  double spaces stay.",
    "naïve café, 東京, Ωmega, 🙂",
    "def f(x):\n        return   x  # " + " " * 21 + "end ",
)


@dataclass(frozen=True)
class Options:
    """Which package, and what it must hold."""

    # Version of the package `mistral-common` that carries the tokenizer.
    version: str = "1.13.1"
    # SHA-256 of its wheel.
    sha256: str = "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af"
    # SHA-256 of tokenizer.model.v1 inside it.
    model_sha256: str = "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055"
    # Number of pieces that the tokenizer must have.
    vocab_size: int = 32_000
    # Local folder with the wheel, for machines without the package index; null = the index.
    wheelhouse: str | None = None


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Convert the SentencePiece model into tokenizer.json and write the tokenizer folder.

    The vocabulary's size, BOS 1, EOS 2 and equality with SentencePiece on a few texts are checked.
    Raises UserError if the package cannot be had or a check fails.
    """
    from sentencepiece import SentencePieceProcessor

    members = read_package(PACKAGE, options.version, options.sha256, MEMBER, options.wheelhouse)
    model = members[MEMBER]
    found = hashlib.sha256(model).hexdigest()
    if found != options.model_sha256:
        raise UserError(f"{MEMBER}: sha256 is {found}, expected {options.model_sha256}")
    pieces = SentencePieceProcessor(model_proto=model)
    tokenizer = _convert(pieces)
    _verify(tokenizer, pieces, options.vocab_size)
    notes = {
        "kind": "SentencePiece BPE",
        "licence": "Apache-2.0",
        "package": f"{PACKAGE}=={options.version}",
        "model_sha256": options.model_sha256,
    }
    # It has no padding token. EOS serves, as padded positions are masked.
    save_tokenizer(out, tokenizer, BOS, EOS, EOS, notes)


def _convert(pieces: "SentencePieceProcessor") -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    ids = range(pieces.get_piece_size())
    vocab = {pieces.id_to_piece(i): i for i in ids}
    model = models.BPE(
        vocab=vocab,
        merges=_merges(pieces, vocab),
        unk_token=pieces.id_to_piece(pieces.unk_id()),
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([pieces.id_to_piece(pieces.unk_id()), BOS, EOS])
    return tokenizer


def _merges(pieces: "SentencePieceProcessor", vocab: dict[str, int]) -> list[tuple[str, str]]:
    # SentencePiece joins the neighbours whose piece scores best, the leftmost among equals. Only
    # runs of spaces have equal scores: there "longest left part first" gives the leftmost join.
    # (Order by piece id, as some converters have it, splits runs of spaces differently.)
    joins = []
    for piece, i in vocab.items():
        if pieces.is_byte(i) or pieces.is_control(i) or pieces.is_unknown(i):
            continue
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        joins += [(pieces.get_score(i), *pair) for pair in halves if vocab.keys() >= {*pair}]
    joins.sort(key=lambda join: (-join[0], -len(join[1]), -len(join[2])))
    return [(left, right) for _, left, right in joins]


def _verify(tokenizer: "Tokenizer", pieces: "SentencePieceProcessor", vocab_size: int) -> None:
    expected = {"vocab_size": vocab_size, "bos_id": BOS_ID, "eos_id": EOS_ID}
    found = {
        "vocab_size": tokenizer.get_vocab_size(),
        "bos_id": tokenizer.token_to_id(BOS),
        "eos_id": tokenizer.token_to_id(EOS),
    }
    if found != expected:
        raise UserError(f"{MEMBER}: converted to {found}, expected {expected}")
    for text in PROBES:
        if tokenizer.encode(text).ids != [BOS_ID, *pieces.encode(text)]:
            raise UserError(f"{MEMBER}: the converted tokenizer encodes {text!r} differently")
