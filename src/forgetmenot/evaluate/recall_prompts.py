"""Prompts and scores of the recall suite, by protocol.

- lm-eval-v0, lm-eval-v1: lm-eval's tasks fda, swde and squad_completion. The prompt is the set's
  text; version 1 strips white space around the prompt and the answer, version 0 does not.
- jrt: "Just read twice" (arXiv 2407.05483). The context is cut to a number of tokens, 50 of them
  kept free for the answer, around the answer's first place; it is given once, or twice after a
  question that comes first. White space at the borders is trimmed alike for all sets.

All generate greedily to the end of the line and look for an answer in what was generated.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Protocol = Literal["lm-eval-v0", "lm-eval-v1", "jrt"]
ANSWER_TOKENS = 50  # of a cut context, kept free in the protocol jrt


def has_prompt(row: dict[str, Any], protocol: Protocol) -> bool:
    """Whether a protocol asks this question.

    lm-eval has tasks for some sets only; jrt leaves out answers of one character.
    """
    return len(row["answers"][0]) > 1 if protocol == "jrt" else row["text"] is not None


def lm_eval_prompt(row: dict[str, Any], protocol: Protocol) -> tuple[str, list[str]]:
    """Prompt and answers of a row that has a "text"."""
    text, answers = row["text"], row["answers"]
    if protocol == "lm-eval-v0":
        return text, answers
    return text.strip(), [answer.strip() for answer in answers]


def jrt_prompt(row: dict[str, Any], tokens: int, passes: int, tokenizer: "Tokenizer") -> str:
    """Prompt with the context cut to `tokens` and given once or twice."""
    room = tokens - ANSWER_TOKENS
    context = cut(row["context"], row["answers"], room, tokenizer)
    if not row["question"]:
        # The question is the end of the text, which begins with the context.
        once = last_tokens(row["text"].strip(), room, tokenizer)
        return once if passes == 1 else f"{row['intro']} {context}\n{once}"
    body = context.strip().strip(".").strip() + "."
    once = f"{body} {row['question']}"
    return once if passes == 1 else f"{row['intro']} {body}\n{once}"


def cut(context: str, answers: Sequence[str], room: int, tokenizer: "Tokenizer") -> str:
    """At most `room` tokens of a context around the first place of its first answer found.

    Half of them lie before the answer where there are enough. Without an answer: from the start.
    """
    offsets = tokenizer.encode(context, add_special_tokens=False).offsets
    if len(offsets) <= room:
        return context
    places = [match.start() for answer in answers if (match := _search(answer, context))]
    answer = sum(end <= places[0] for _, end in offsets) if places else 0
    start = max(0, answer - room // 2)
    end = min(len(offsets), start + room)
    while True:
        part = context[offsets[start][0] : offsets[end - 1][1]]
        # A part may take a token more than it had within the whole.
        if len(tokenizer.encode(part, add_special_tokens=False).ids) <= room:
            return part
        end -= 1


def last_tokens(text: str, room: int, tokenizer: "Tokenizer") -> str:
    """At most the last `room` tokens of a text."""
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    return text if len(offsets) <= room else text[offsets[len(offsets) - room][0] :]


def _search(answer: str, text: str) -> re.Match[str] | None:
    return re.search(re.escape(answer), text, re.IGNORECASE)


def contains(output: str, answers: Sequence[str]) -> float:
    """Whether one of the answers occurs in the output, ignoring case."""
    return float(any(_search(answer, output) for answer in answers))


def f1(output: str, answers: Sequence[str]) -> float:
    """SQuAD's F1 of the words, the best over the answers; case, articles, punctuation ignored."""
    return max(_f1(_words(output), _words(answer)) for answer in answers)


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def _words(text: str) -> list[str]:
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval's hook: the scores of one generated line."""
    output, answers = results[0], doc["answers"]
    return {"contains": contains(output, answers), "f1": f1(output, answers)}
