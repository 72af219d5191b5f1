"""Our models as an lm-eval model.

lm-eval (0.4.13) builds the requests and aggregates the scores; this module answers its three kinds
of request with tokens and states. It never truncates: a request that does not fit is an error.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import (
    get_rolling_token_windows,
    make_disjoint_window,
    simple_parse_args_string,
)
from torch.nn.utils.rnn import pad_sequence

from forgetmenot import model as models
from forgetmenot.data.tokenizer_folder import load_tokenizer, read_tokenizer_meta
from forgetmenot.errors import UserError
from forgetmenot.evaluate.generate import greedy, left_padded, length_batches
from forgetmenot.evaluate.score import IGNORED, label_losses, token_losses

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Scored = tuple[tuple[str, str], list[int], list[int]]


@register_model("forgetmenot")
class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm-eval ships no types
    """A model and its tokenizer, from a built folder, behind lm-eval's interface.

    `max_length` is the most tokens of a request, prompt and continuation together. A generated text
    ends at EOS, and at BOS too, because training on packed text separates documents by BOS alone.
    Raises UserError if the folder holds no tokenizer.

    lm-eval knows it as "forgetmenot" once this module is imported (`forgetmenot.cli.lm_eval`), with
    the model arguments `model` and `tokenizer`, folders, and perhaps `max_length` (4096).
    """

    def __init__(
        self,
        model: Any,
        folder: Path,
        *,
        max_length: int,
        batch_size: int,
        device: str,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, load_tokenizer(folder)
        self.max_length, self.batch_size = max_length, batch_size
        self._device = device
        meta = read_tokenizer_meta(folder)
        self.bos_id, self.eos_id = int(meta["bos_id"]), int(meta["eos_id"])

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "HarnessModel":
        """From "model=FOLDER,tokenizer=FOLDER[,max_length=N]"; see `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "HarnessModel":
        """From lm-eval's model arguments; device and batch size (16) are among the others.

        Without a GPU, "cuda" means the CPU.

        Raises UserError for an argument that is missing or unknown, and for a batch size that is
        no number.
        """
        given = {**arg_dict, **{k: v for k, v in (additional_config or {}).items() if v}}
        known = {"model", "tokenizer", "max_length", "batch_size", "max_batch_size", "device"}
        if not {"model", "tokenizer"} <= set(given) <= known:
            raise UserError(
                f"model_args: found {sorted(arg_dict)}; allowed: model and tokenizer (folders), "
                "max_length"
            )
        batch_size = str(given.get("batch_size", 16))
        if not batch_size.isdecimal() or batch_size == "0":
            raise UserError(f"batch_size: found {batch_size}; allowed: 1 or more")
        device = str(given.get("device") or "cuda")
        if device.startswith("cuda") and not torch.cuda.is_available():
            device = "cpu"  # lm-eval asks for cuda:0 unless told otherwise; its `hf` does the same
        return cls(
            models.load(Path(given["model"])).to(device),
            Path(given["tokenizer"]),
            max_length=int(given.get("max_length", 4096)),
            batch_size=int(batch_size),
            device=device,
        )

    @property
    def eot_token_id(self) -> int:
        """Id of EOS."""
        return self.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Id of BOS, the context of a text that has none."""
        return self.bos_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids of a text; BOS comes first unless `add_special_tokens` is False."""
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False).ids

    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        for (context, _), context_ids, target_ids in requests:
            self._require_fit(len(context_ids) + len(target_ids), context)
        pairs = [(context_ids, target_ids) for _, context_ids, target_ids in requests]
        # A prompt changes a ProSG model: its context is read and committed, then the rest follows.
        is_plain = self.model.base is self.model
        return self._score(pairs) if is_plain else self._score_prompted(pairs)

    def loglikelihood_rolling(
        self, requests: "list[Instance]", disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of each whole text, in lm-eval's disjoint windows of `max_length` tokens.

        Every token is predicted once: the first one from BOS, a window's first from the token
        before it, and the rest at the end from a whole window. The model starts each window from
        its empty state, and as such a text has no prompt, a ProSG model scores it as its base does.
        """
        pairs: list[tuple[list[int], list[int]]] = []
        ends = []
        for request in requests:
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.bos_id, self.max_length, context_len=1)
            pairs += map(make_disjoint_window, windows)
            ends.append(len(pairs))
        scores = [log_likelihood for log_likelihood, _ in self._score(pairs)]
        return [sum(scores[a:b]) for a, b in zip([0, *ends], ends, strict=False)]

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """(log-likelihood of the target after the context, whether it is the greedy choice).

        Pairs of similar length share a batch. Shorter rows are filled up on the right, which a
        causal model cannot see, and filled positions are not scored.
        """
        results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            length = sum(map(len, pairs[batch[0]])) - 1
            input_ids_BL = torch.full((len(batch), length), self.bos_id)
            labels_BL = torch.full((len(batch), length), IGNORED)
            for row, index in enumerate(batch):
                context, target = pairs[index]
                ids = torch.tensor(context + target)
                input_ids_BL[row, : len(ids) - 1] = ids[:-1]
                labels_BL[row, len(context) - 1 : len(ids) - 1] = ids[len(context) :]
            labels_BL = labels_BL.to(self._device)
            loss_BL, hit_BL = token_losses(self.model, input_ids_BL.to(self._device), labels_BL)
            for index, score in zip(batch, _totals(loss_BL, hit_BL, labels_BL), strict=True):
                results[index] = score
        return results

    @torch.inference_mode()
    def _score_prompted(
        self, pairs: Sequence[tuple[list[int], list[int]]]
    ) -> list[tuple[float, bool]]:
        """As `_score`, with each context read as a prompt and committed before its target.

        As in generation, a target's first token is predicted by the model that read the prompt, and
        its later ones on the weights that the prompt changed.
        """
        results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        for batch in length_batches([len(context) for context, _ in pairs], self.batch_size):
            ids_BP, padding = left_padded([pairs[index][0] for index in batch], self._device)
            read = self.model(ids_BP, logits_to_keep=1, **padding)
            targets = [torch.tensor(pairs[index][1]) for index in batch]
            labels_BL = pad_sequence(targets, True, IGNORED).to(self._device)
            # No scored token sees what is filled up on the right.
            body_BL = labels_BL[:, :-1].clamp(min=0)
            logits_BLV = read.logits_BLV
            if body_BL.shape[1]:
                state = self.model.commit_prompt(read.state)
                body = self.model(body_BL, state, need_state=False)
                logits_BLV = torch.cat((logits_BLV, body.logits_BLV), 1)
            loss_BL, hit_BL = label_losses(logits_BLV, labels_BL)
            for index, score in zip(batch, _totals(loss_BL, hit_BL, labels_BL), strict=True):
                results[index] = score
        return results

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Greedy continuation of each prompt, cut before its first stop string, EOS or BOS."""
        results = [""] * len(requests)
        kinds: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for index, request in enumerate(requests):
            options = request.args[1]
            if options.get("do_sample"):
                raise UserError("do_sample: found true, allowed: false (decoding is greedy)")
            until = options.get("until") or []
            stops = (until,) if isinstance(until, str) else tuple(until)
            kinds.setdefault((options["max_gen_toks"], stops), []).append(index)
        for (max_new_tokens, stops), indices in kinds.items():
            prompts = [self.tok_encode(requests[index].args[0]) for index in indices]
            for index, prompt in zip(indices, prompts, strict=True):
                self._require_fit(len(prompt) + max_new_tokens, requests[index].args[0])
            rows = greedy(
                self.model,
                prompts,
                max_new_tokens=max_new_tokens,
                batch_size=self.batch_size,
                stop=self._stop(stops),
                device=str(self._device),
            )
            for index, row in zip(indices, rows, strict=True):
                results[index] = self._text(row, stops)
        return results

    def _stop(self, stops: tuple[str, ...]) -> Callable[[list[int]], bool]:
        def stop(ids: list[int]) -> bool:
            text = self.tokenizer.decode(ids) if stops else ""
            return ids[-1] in (self.bos_id, self.eos_id) or any(string in text for string in stops)

        return stop

    def _text(self, ids: list[int], stops: tuple[str, ...]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text[: min((text.find(s) for s in stops if s in text), default=len(text))]

    def _require_fit(self, tokens: int, text: str) -> None:
        if tokens > self.max_length:
            raise UserError(
                f"a request that begins {text[:60]!r} takes {tokens} tokens with its "
                f"continuation; max_length allows {self.max_length} (nothing is cut off)"
            )


def _totals(
    loss_BL: torch.Tensor, hit_BL: torch.Tensor, labels_BL: torch.Tensor
) -> list[tuple[float, bool]]:
    """Of each row: its log-likelihood, and whether every scored token is the first choice."""
    greedy_B = (hit_BL | (labels_BL == IGNORED)).all(1).tolist()
    return list(zip((-loss_BL.double().sum(1)).tolist(), greedy_B, strict=True))
