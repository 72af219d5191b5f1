"""What a model with learnable token eviction keeps of a real text, by layer, head and token.

Kept means a positive retention score (LTE specification; docs/semantics.md). Sinks are kept by
rule and the last tokens are seen through the window, whatever their scores.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from forgetmenot import model as models
from forgetmenot.data.documents import read_documents
from forgetmenot.data.tokenizer_folder import load_tokenizer, read_tokenizer_meta
from forgetmenot.errors import UserError
from forgetmenot.evaluate.results import Metric, Sample, metric, require_vocabulary, write_results
from forgetmenot.files import write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Options:
    """Which text to show."""

    document: int = 0  # which document of heldout.jsonl to show, from 0
    tokens: int = 256  # its first tokens to show, BOS included

    def __post_init__(self) -> None:
        if self.document < 0 or self.tokens < 1:
            raise ValueError(
                f"document, tokens: found {self.document}, {self.tokens}; "
                "allowed: 0 or more, 1 or more"
            )


@dataclass(frozen=True)
class LayerMap:
    """One layer with token eviction: `scores`, `heads` (kept?) and `seen_last`, [heads][tokens].

    `seen_last` tells which tokens the last query sees: with a budget, some that had a positive
    score have been displaced again.
    """

    layer: int
    window: int
    sink: int
    budget: int | None
    scores: list[list[float]]
    heads: list[list[bool]]
    seen_last: list[list[bool]]


def evaluate(model_dir: Path, data_dir: Path, options: Options, out: Path, device: str) -> None:
    """Write kept.json (the map), results.json: "kept_share" at {"layer", "head"} and at {}, and
    samples.jsonl: one line a token.

    kept.json: {"document", "source", "tokens": [text pieces], "layers": [LayerMap], and "window",
    "sink", "budget" (null if the layers differ)}. `data_dir` is a built token folder. Raises
    UserError if the model has no layer with token eviction.
    """
    model = models.load(model_dir).to(device)
    tokenizer = load_tokenizer(data_dir)
    require_vocabulary(model, read_tokenizer_meta(data_dir)["vocab_size"], data_dir)
    document = _document(data_dir / "heldout.jsonl", options.document)
    ids = tokenizer.encode(document["text"]).ids[: options.tokens]
    layers = kept_layers(model, torch.tensor([ids], device=device))
    write_json(
        out / "kept.json",
        {
            "document": document["id"],
            "source": document.get("source", ""),
            "tokens": text_pieces(tokenizer, document["text"], len(ids)),
            "layers": [asdict(layer) for layer in layers],
            **{key: shared(layers, key) for key in ("window", "sink", "budget")},
        },
    )
    metrics, samples = summarise(layers)
    write_results(out, "kept_map", metrics, samples)


def kept_layers(model: Any, input_ids_1T: torch.Tensor) -> list[LayerMap]:
    """The map of one sequence of tokens (int64 [1, T])."""
    layers = []
    for index, score_BTH, seen_BTH in evicting_layers(model, input_ids_1T):
        score_HT = score_BTH[0].T
        options: Any = model.base.layers[index].options
        layers.append(
            LayerMap(
                layer=index,
                window=options.window,
                sink=options.sink,
                budget=options.budget,
                scores=[[round(score, 4) for score in row] for row in score_HT.tolist()],
                heads=(score_HT > 0).tolist(),
                seen_last=seen_BTH[0].T.tolist(),
            )
        )
    return layers


def evicting_layers(
    model: Any, input_ids_BT: torch.Tensor
) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """Index, scores [B, T, H] (float32) and what the last query sees [B, T, H] (bool) of each
    layer with token eviction, on the CPU. Raises UserError if the model has none.
    """
    with torch.inference_mode():
        aux = model(input_ids_BT, need_state=False).aux
    last = input_ids_BT.shape[1] - 1
    found = []
    for index, of_layer in enumerate(aux):
        if "score_BTH" not in of_layer:
            continue
        options: Any = model.base.layers[index].options
        position_T = torch.arange(last + 1)
        always_T = (last - position_T < options.window) | (position_T < options.sink)
        seen_BTH = always_T[:, None] | (last < of_layer["visible_until_BTH"].cpu())
        found.append((index, of_layer["score_BTH"].float().cpu(), seen_BTH))
    if not found:
        raise UserError(
            "found no layer with token eviction in the model; needs a model with lte layers"
        )
    return found


def shared(layers: list[LayerMap], key: str) -> Any:
    """The value of `key` if all layers have the same one, else None."""
    values = {getattr(layer, key) for layer in layers}
    return values.pop() if len(values) == 1 else None


def summarise(layers: list[LayerMap]) -> tuple[list[Metric], list[Sample]]:
    """Share of tokens with a positive score, per layer and head and over all.

    Without a standard error: one text is one sample.
    """
    metrics: list[Metric] = []
    samples: list[Sample] = []
    shares = []
    for layer in layers:
        for head, kept in enumerate(layer.heads):
            at = {"layer": layer.layer, "head": head}
            shares.append(sum(kept) / len(kept))
            metrics.append(metric("kept_share", at, shares[-1], None, len(kept)))
            samples += [
                {"id": token, "at": at, "kept": value, "score": layer.scores[head][token]}
                for token, value in enumerate(kept)
            ]
    tokens = len(layers[0].heads[0])
    return [metric("kept_share", {}, sum(shares) / len(shares), None, tokens), *metrics], samples


def text_pieces(tokenizer: "Tokenizer", text: str, count: int) -> list[str]:
    """The text of each of the first `count` tokens; joined, they give the text back.

    A special token shows as its name. When several tokens share the bytes of one character, the
    first has the character and the others are empty.
    """
    encoding = tokenizer.encode(text)
    pieces, end = [], 0
    for index in range(count):
        if encoding.special_tokens_mask[index]:
            pieces.append(encoding.tokens[index])
            continue
        stop = max(end, encoding.offsets[index][1])
        pieces.append(text[end:stop])
        end = stop
    return pieces


def _document(file: Path, index: int) -> dict[str, Any]:
    number = -1
    for number, document in enumerate(read_documents(file)):
        if number == index:
            return document
    raise UserError(f"{file}: document: found {index}, allowed: 0 to {number}")
