"""The page's glossary: short definitions, of the terms that occur on the page alone."""

import html
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A term: its name, its definition, and other words by which a text speaks of it."""

    name: str
    text: str
    words: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """Its place on the page."""
        return "term-" + re.sub(r"\W+", "-", self.name.lower()).strip("-")

    def place(self, text: str) -> tuple[int, int] | None:
        """Where `text` first speaks of it, and minus the word's length; None if it does not."""
        found = (_pattern(word).search(text) for word in (self.name, *self.words))
        return min(((m.start(), -len(m[0])) for m in found if m), default=None)


def _pattern(word: str) -> re.Pattern[str]:
    """An abbreviation as it is written; any other word with a small or a capital letter too."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE if word.islower() else 0)


TERMS = (
    Term("accuracy", "Share of answers that are right.", ("acc", "found", "needles found")),
    Term(
        "AUFC",
        "Area under the forgetting curve: the mean of R(D) over log2 D, from the first distance "
        "above 0 to the longest. 1: nothing was forgotten. More than 1: more is right later than "
        "right after the prompt.",
    ),
    Term("bits per byte", "Loss on text by the byte, in bits; independent of the tokenizer."),
    Term(
        "bootstrap",
        "Seeds and samples are drawn again many times, with repetition; how the mean moves gives "
        "the interval and the p-value.",
    ),
    Term(
        "budget",
        "b: the most tokens that a head of an eviction layer keeps beyond its window, sinks "
        "included.",
    ),
    Term("capture", "Accuracy at distance 0, right after the prompt: what it left in the state."),
    Term("chance", "Accuracy of a guess among all words that could be the answer."),
    Term(
        "control",
        "In a claim: the model that shows whether the task was learnable. In ProSG's tables: "
        "something else than the model's own protocol (another prompt, another update, none).",
    ),
    Term("context", "The tokens before the one that is predicted."),
    Term("cosine", "Likeness of two directions: 1 the same, 0 unrelated, -1 opposite."),
    Term("decode", "One step for one new token, after what was read before.", ("decoding",)),
    Term(
        "distance",
        "D: tokens between the end of the prompt and the question; for needles, between the "
        "needle and the end of the prompt.",
    ),
    Term(
        "effect",
        "Difference of the two sides of a comparison, positive where it favours the claim.",
    ),
    Term(
        "floats a session",
        "Numbers kept for one sequence at the longest distance: recurrent state or cache, and "
        "update; counted, not measured.",
    ),
    Term("FLOPs", "Operations of a forward pass, 2 for a multiply-add.", ("MFLOP",)),
    Term(
        "frozen read",
        "The frozen base model with a copy of the state after the prompt that every later token "
        "reads.",
    ),
    Term("GDN", "Linear attention, which has a state of fixed size.", ("Gated DeltaNet",)),
    Term(
        "half-distance",
        "Distance at which R(D) first falls to a half; the longest one asked where it never does.",
    ),
    Term(
        "harm",
        "Perplexity of unrelated held-out text read right after the prompt, with the update over "
        "without it; above 1 the update does harm.",
        ("perplexity of general text", "loss on general text"),
    ),
    Term(
        "Holm",
        "Holm's adjustment of p-values when several comparisons are tested: at 5 %, the chance of "
        "one false finding or more among them is at most 5 %.",
    ),
    Term(
        "interval",
        "In square brackets, 95 %: the range in which the number may well lie, given the choice of "
        "samples and, where there are several, of seeds.",
    ),
    Term(
        "kept share",
        "Of the tokens of a needle's value, those that a head can still attend to from the last "
        "token of the prompt; a mean over eviction layers and heads.",
        ("kept", "kept whole"),
    ),
    Term(
        "kept tokens",
        "How many tokens a head keeps, the window included, as training counts them; a mean over "
        "eviction layers and heads.",
    ),
    Term("laLTE", "Gated DeltaNet alternating with attention under learnable token eviction."),
    Term("laNSA", "Gated DeltaNet alternating with native sparse attention."),
    Term("loss", "Minus the logarithm of the right token's probability, in nats, a mean."),
    Term(
        "LTE",
        "Learnable token eviction: a small network decides per head which keys and values outlive "
        "the window, at constant memory.",
        ("learnable token eviction",),
    ),
    Term(
        "MFU",
        "Model FLOPs utilisation: three times the forward pass's operations, as a share of what "
        "the GPU could do at most.",
    ),
    Term(
        "needle",
        "A number or code hidden in a long context and asked for at its end.",
        ("needles",),
    ),
    Term(
        "NSA",
        "Native sparse attention: blocks of past tokens are chosen for each query; any token can "
        "be reached, and the state grows with the context.",
        ("native sparse attention",),
    ),
    Term(
        "own less wrong update",
        "Specificity: accuracy with the own update less that with "
        "another prompt's, on the same questions.",
        ("specificity",),
    ),
    Term(
        "pairs",
        "Recall: so many keys with a value each are read, then keys are asked for.",
        ("multi-query recall", "multi-query associative recall"),
    ),
    Term(
        "perplexity",
        "e to the power of the mean loss (by token or by word): lower is better, 1 is certainty.",
        ("ppl",),
    ),
    Term("plateau", "A stretch of training before a task is learned, in which its loss stays."),
    Term("prefill", "Reading a prompt as a whole, from nothing."),
    Term(
        "ProSG",
        "The state after the prompt becomes a temporary low-rank change of the model's own "
        "weights. What runs here is a from-scratch implementation of the method as the abstract "
        "describes it; the details are ours.",
    ),
    Term(
        "refresh",
        "Every so many tokens the recurrent state is blended with a copy of what it was after the "
        "prompt; nothing is trained for that.",
    ),
    Term(
        "retention R(D)",
        "Accuracy at distance D above chance, as a share of the capture above chance.",
        ("R(D)", "R", "retention"),
    ),
    Term("RWKV-4", "A recurrent language model with a state of fixed size."),
    Term("RWKV-7", "A recurrent language model with a state of fixed size."),
    Term("S-NIAH-1", "RULER's single needle: a 7-digit number among repeated sentences."),
    Term("S-NIAH-2", "RULER's single needle: a 7-digit number in prose."),
    Term("S-NIAH-3", "RULER's single needle: a UUID in prose."),
    Term(
        "seed",
        "The number from which a training draws all that is random; several seeds are several "
        "trainings.",
        ("seeds",),
    ),
    Term("sinks", "The first tokens of a sequence, which an eviction layer always keeps."),
    Term("state", "What one sequence leaves in memory for the tokens to come."),
    Term(
        "static LoRA",
        "The base model trained on, with a low-rank update after the prompt that does not depend "
        "on it.",
    ),
    Term(
        "still right at the longest",
        "Accuracy at the longest distance of the questions that were answered right at distance 0.",
    ),
    Term(
        "SWA",
        "Sliding-window attention: a token sees the window before it, nothing older.",
        ("sliding-window attention",),
    ),
    Term(
        "undecided",
        "Neither supported nor contradicted: the test found too little, or a condition for it "
        "failed, which is then said.",
    ),
    Term(
        "update",
        "ProSG's low-rank change of the weights, made from the state after the prompt.",
        ("update alone", "dW"),
    ),
    Term(
        "Wilson",
        "Wilson's interval of a share, taken where all samples are alike and the bootstrap would "
        "have no width.",
    ),
    Term(
        "window",
        "The last tokens, the current one included, all of which an attention layer sees; what "
        "lies beyond it is lost to that layer unless it is kept or chosen.",
    ),
    Term("wrong prompt", "Another sample's prompt was read: answers must be at chance."),
    Term("wrong update", "The own state, with the update of another prompt."),
)


def of(text: str) -> Term | None:
    """The term that a heading is about: the first that it speaks of, of two the longer."""
    found = [(place, term) for term in TERMS if (place := term.place(text)) is not None]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def occurring(page: str) -> list[Term]:
    """The terms that a page speaks of, and those that their definitions need, by name."""
    found: set[Term] = set()
    new = _terms(_visible(page))
    while new - found:
        found |= new
        new = _terms(" ".join(term.text for term in found))
    return sorted(found, key=lambda term: term.name.lower())


def _terms(text: str) -> set[Term]:
    return {term for term in TERMS if term.place(text) is not None}


def _visible(page: str) -> str:
    """The words of a page of HTML, without what it stores as it is (requests, styles)."""
    for part in ("style", "pre", "code"):
        page = re.sub(rf"<{part}\b.*?</{part}>", " ", page, flags=re.S)
    return html.unescape(re.sub(r"<[^>]*>", " ", page))
