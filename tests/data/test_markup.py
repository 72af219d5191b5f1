import re

from forgetmenot.data.markup import Rules, paragraphs

RULES = Rules(
    breaks=re.compile(r"</?(p|h2)\b"),
    lines=re.compile(r"<br\b"),
    dropped=frozenset({"note", "table"}),
)


def found(markup):
    return list(paragraphs(markup, RULES))


def test_paragraphs_and_the_tags_that_began_them():
    markup = "before <p>One\n <i>two</i> &amp; <br/>three</p> loose<h2>Head</h2><p> </p>"
    assert found(markup) == [
        ("", "before"),
        ("p", "One two &\nthree"),
        ("p", "loose"),
        ("h2", "Head"),
    ]


def test_dropped_elements_go_with_their_content_and_leave_one_space():
    markup = (
        "God<note n='1'>The <note>inner</note> word</note><w>made</w> it<note>x</note>, so<note/>."
    )
    assert found(markup) == [("", "God made it, so.")]
    assert found("a<table><p>cell</p></table>b<p>c</table>d") == [("", "a b"), ("p", "c d")]


def test_comments_and_stray_brackets():
    assert found("a <!-- <p> not --> b < c <unknown x='1'> d") == [("", "a b < c d")]
