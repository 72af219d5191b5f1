import pytest

from forgetmenot.data.prose import clean, parts, without_emphasis, wrapped_paragraphs


def test_clean_composes_characters_and_drops_what_is_not_seen():
    assert (
        clean("cafe\u0301\u00a0 a\tb\u200b\ufeff so\u00adft \n\n  verse ") == "café a b soft\nverse"
    )


def test_paragraphs_are_runs_of_lines():
    lines = ["", "one", "  two ", "", " ", "three"]
    assert list(wrapped_paragraphs(lines)) == [["one", "  two"], ["three"]]
    assert list(wrapped_paragraphs(["", " "])) == []


@pytest.mark.parametrize(
    ("words", "sizes"),
    [(100, [30]), (30, [30]), (29, [15, 15]), (10, [10, 10, 10]), (1, [5] * 6)],
)
def test_parts_are_even_and_keep_every_paragraph(words, sizes):
    paragraphs = [f"{number} a b c d" for number in range(6)]
    found = parts(paragraphs, words)
    assert [len(part.split()) for part in found] == sizes
    assert "\n\n".join(found) == "\n\n".join(paragraphs)


def test_nothing_has_no_parts():
    assert parts([], 5) == []


def test_emphasis_is_dropped():
    assert (
        without_emphasis("it is _she_, snake_case, _my dear_") == "it is she, snake_case, my dear"
    )
