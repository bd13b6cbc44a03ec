"""Numbers and marks of the pictures."""

import pytest

from thinwire.bench.looks import COLOURS, Look, clean, escape, sig


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1,234"), (0.1 + 0.2, "0.300"), (float("inf"), "inf"), (1e12, "1.0e+12")],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert sig(value) == text


def test_what_no_page_can_hold_is_replaced() -> None:
    assert clean("a\x00b\ud800") == "a\ufffdb\ufffd"
    assert escape("\x07<") == "\ufffd&lt;"


def test_colours_and_marks_go_round_and_the_baseline_has_the_inks() -> None:
    assert Look(0, rival=False).ink == Look(COLOURS, rival=False).ink
    assert Look(0, rival=False).marker != Look(COLOURS, rival=False).marker
    assert Look(3, rival=True, baseline=True).ink == "ink"


def test_contestants_look_different() -> None:
    looks = [Look(at, rival=False).swatch() for at in range(42)]
    assert len(set(looks)) == 42
    assert all("dasharray" in Look(at, rival=True).swatch() for at in range(42))
