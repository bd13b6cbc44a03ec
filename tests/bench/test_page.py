"""The parts of a page: what they show, and that no text becomes markup."""

from thinwire.bench.page import Cell, Choice, Head, Row, document, section, table, time_unit


def test_words_are_escaped_wherever_they_stand() -> None:
    heads = [Head("<who>", number=False), Head("x", "<ms>")]
    html = table("<b>", heads, [Row([Cell.words("<i>"), Cell.number(2.0)])])
    html += Choice("target", "<t>", [("<0>", "<one>")]).html() + document("<title>")
    for each in ("<who>", "<ms>", "<b>", "<i>", "<t>", "<0>", "<one>"):
        assert each not in html
    assert "&lt;who&gt;" in html


def test_an_empty_section_is_left_out() -> None:
    assert section("Errors", "", "") == ""
    assert "<h2>Errors</h2>" in section("Errors", "some")


def test_times_are_shown_in_the_unit_of_their_middle() -> None:
    assert [time_unit(times)[1] for times in ([1, 2], [600], [9000], [])] == ["s", "min", "h", "s"]
