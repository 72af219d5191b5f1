"""The sets of the recall suite: where each comes from, and its rows in one form.

A row becomes {"text": the prompt of lm-eval's task for its set (null: lm-eval has none), "context":
what is cut or repeated, "question": what follows the context ("" = the text has it already),
"intro": what stands before a context that is given twice, "answers": [text], verbatim}. Columns and
wording are those of the hub's sets as the tasks of lm-eval and of "Just read twice" (arXiv
2407.05483) use them.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from forgetmenot.data.hub_sets import HubSet, Row, require_columns
from forgetmenot.errors import UserError

SUMMARY = "Summary of information above..."  # begins SWDE's question


def _field_text(row: Row, text: str) -> Iterator[Row]:
    """A document with a field to complete; the field may stand at the end of the text already."""
    key, context = row["key"].strip(), text.rstrip()
    while context.lower().endswith(f"{key}:".lower()):
        context = context[: -len(key) - 1].rstrip()
    name = key[:1].upper() + key[1:]
    yield {
        "text": row["text"],
        "context": context,
        "question": f"{name}:",
        "intro": f"Information about {name}.",
        "answers": [row["value"]],
    }


def fda(row: Row) -> Iterator[Row]:
    """hazyresearch/based-fda."""
    yield from _field_text(row, row["text"])


def swde(row: Row) -> Iterator[Row]:
    """hazyresearch/based-swde-v2: its text ends with a summary's beginning and the field."""
    yield from _field_text(row, row["text"].split(SUMMARY)[0])


def squad(row: Row) -> Iterator[Row]:
    """hazyresearch/based-squad: its text ends with the beginning of a sentence to complete."""
    context = row["context"].split("Question:")[0].strip()
    answers = [row["value"]]
    intro = row["question"].strip()
    yield {
        "text": row["text"],
        "context": context,
        "question": "",
        "intro": intro,
        "answers": answers,
    }


def cloze(row: Row) -> Iterator[Row]:
    """hazyresearch/based_triviaqa, based_nq_*, based_drop: questions as sentences to complete."""
    context = re.sub(r"\[(PAR|DOC|TLE)\]", "", row["context"]).strip()
    question = row["question"].strip()
    while question and context.lower().endswith(question.lower()):
        context = context[: -len(question)].rstrip()
    intro = row["orig_question"].strip().removesuffix(":")
    if row["answers"]:
        yield {
            "text": None,
            "context": context,
            "question": question,
            "intro": intro,
            "answers": list(row["answers"]),
        }


def _asked(context: str, question: str, answers: list[str]) -> Row:
    """A set of ours: a passage and a plain question."""
    ending = f"Question: {question} Answer:"
    made = {"context": context, "question": ending, "intro": question, "answers": answers}
    return {"text": None, **made}


def squad_dev(row: Row) -> Iterator[Row]:
    """One file in SQuAD's own format."""
    for article in row["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = list(dict.fromkeys(answer["text"] for answer in asked["answers"]))
                yield {"id": asked["id"]} | _asked(
                    paragraph["context"].strip(), asked["question"].strip(), answers
                )


def drop_subset(row: Row) -> Iterator[Row]:
    """One file of examples "Passage: ... Question: ... Answer type: ...".

    Those are taken whose answers, of two characters or more, stand in the passage as words. They
    are numbers, some of which have to be computed all the same.
    """
    form = re.compile(r"Passage: (.*)\s*\nQuestion: (.*?)\s*\nAnswer type: \w+", re.DOTALL)
    for number, example in enumerate(row["examples"]):
        match = form.match(example["input"])
        if match is None:
            raise UserError(f"drop_subset: example {number} is not of the form Passage, Question")
        answers = [target.strip().removesuffix(".") for target in example["target"]]
        if all(
            len(answer) > 1 and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", match[1])
            for answer in answers
        ):
            yield {"id": str(number)} | _asked(match[1].strip(), match[2], answers)


def nq_swapped(row: Row) -> Iterator[Row]:
    """One file of examples "Question: ... Context: ..." with another answer put in the context."""
    form = re.compile(r"\s*Question: (.*?)\s*\nContext: (.*)", re.DOTALL)
    for number, example in enumerate(row["examples"]):
        match = form.match(example["input"])
        if match is None:
            raise UserError(f"nq_swapped: example {number} is not of the form Question, Context")
        yield {"id": str(number)} | _asked(match[2].strip(), match[1], [example["target"]])


def factbook(row: Row) -> Iterator[Row]:
    """A line of the builder `factbook`."""
    text = f"{row['context']}\n{row['key']}:"
    for made in _field_text({**row, "text": text}, row["context"]):
        yield {"id": row["id"], **made}


@dataclass(frozen=True)
class RecallSet:
    """A set's origin, the columns it needs, how a row is read, and its fixed context if any."""

    source: HubSet
    columns: tuple[str, ...]
    read: Callable[[Row], Iterator[Row]]
    context: int | None = None  # tokens that its passages were cut to where they come from


_FIELD, _CLOZE = ("text", "key", "value"), ("context", "question", "orig_question", "answers")
_BIGBENCH = "Apache-2.0 (BIG-bench); texts "


def _hub(name: str) -> HubSet:
    return HubSet(f"hazyresearch/{name}", "validation")


def _file(file: str, licence: str) -> HubSet:
    return HubSet(None, "test", file=file, licence=licence)


SETS = {
    "fda": RecallSet(_hub("based-fda"), _FIELD, fda),
    "swde": RecallSet(_hub("based-swde-v2"), _FIELD, swde),
    "squad": RecallSet(_hub("based-squad"), ("text", "context", "question", "value"), squad),
    "triviaqa": RecallSet(_hub("based_triviaqa"), _CLOZE, cloze),
    **{f"nq_{n}": RecallSet(_hub(f"based_nq_{n}"), _CLOZE, cloze, n) for n in (512, 1024, 2048)},
    "drop": RecallSet(_hub("based_drop"), _CLOZE, cloze),
    "squad_dev": RecallSet(
        _file("squadshifts_squaddev_v1.1.json", "CC BY-SA 4.0 (SQuAD v1.1 dev)"),
        ("data",),
        squad_dev,
    ),
    "drop_subset": RecallSet(
        _file("bigbench_ni028_drop_answer.json", _BIGBENCH + "CC BY-SA 4.0 (DROP)"),
        ("examples",),
        drop_subset,
    ),
    "nq_swapped": RecallSet(
        _file("bigbench_context_conflicts_nq.json", _BIGBENCH + "CC BY-SA 3.0 (NQ)"),
        ("examples",),
        nq_swapped,
    ),
    "factbook": RecallSet(HubSet(None, "test"), ("id", "context", "key", "value"), factbook),
}


def read_rows(name: str, rows: list[Row]) -> Iterator[Row]:
    """The rows of set `name` in the one form, each with an id.

    Raises UserError on missing columns.
    """
    of_set = SETS[name]
    number = 0
    for row in rows:
        require_columns(name, row, of_set.columns)
        for made in of_set.read(row):
            made = {"id": str(number), **made}
            canary = {"canary": row["canary"]} if "canary" in row else {}
            yield {**made, "id": f"{name}/{made['id']}", **canary}
            number += 1
