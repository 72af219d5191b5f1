"""A byte-level BPE tokenizer trained on a corpus: any text can be encoded, no unknown token.

For small models a small vocabulary matters, since a 32,000-row embedding would dominate their size.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from forgetmenot.data.documents import fraction, read_documents
from forgetmenot.data.tokenizer_folder import save_tokenizer
from forgetmenot.errors import UserError

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


@dataclass(frozen=True)
class Options:
    """Vocabulary and training text."""

    # Number of tokens, with the 3 special ones (ids 0, 1, 2) and the 256 bytes.
    vocab_size: int = 2048
    # About how many bytes of training text to learn merges from; documents are drawn by hash.
    max_bytes: int = 8_000_000

    def __post_init__(self) -> None:
        if self.vocab_size < 259:
            raise ValueError(f"vocab_size: found {self.vocab_size}, allowed: 259 or more")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes: found {self.max_bytes}, allowed: 1 or more")


def build(options: Options, inputs: dict[str, Path], out: Path) -> None:
    """Train on train.jsonl of the one input, a corpus folder; write the tokenizer folder.

    Each digit is a token of its own. Special tokens: <s> 0 (put before each text), </s> 1, <pad> 2.
    Raises UserError if the text is too little to fill the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if len(inputs) != 1:
        raise UserError(f"bpe_tokenizer: needs one corpus, found inputs {sorted(inputs)}")
    (corpus,) = inputs.values()

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(corpus, options.max_bytes), trainer)
    if tokenizer.get_vocab_size() != options.vocab_size:
        raise UserError(
            f"vocab_size: the text gives only {tokenizer.get_vocab_size()} tokens of "
            f"{options.vocab_size}; use a smaller vocab_size or more text"
        )
    save_tokenizer(out, tokenizer, BOS, EOS, PAD, {"kind": "byte-level BPE"})


def _sample(corpus: Path, max_bytes: int) -> Iterator[str]:
    meta = json.loads((corpus / "meta.json").read_text(encoding="utf-8"))
    share = max_bytes / meta["splits"]["train"]["bytes"]
    for document in read_documents(corpus / "train.jsonl"):
        if fraction(document["id"], "tokenizer") < share:
            yield document["text"]
