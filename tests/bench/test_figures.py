"""Pictures take their colours from the page, and their words from the reader's font."""

from thinwire.bench.figures import PARTS, Line, bars, curves, parts_legend
from thinwire.bench.looks import Look


def test_a_picture_of_losses_has_the_pages_colours_and_its_words() -> None:
    lines = [Line(Look(0, rival=False), [1.0, 2.0], [3.0, 2.0], [2.9, 1.9], [3.1, 2.1])]
    svg = curves(lines, ("Loss <against> time", "One line."), "seconds", [2.5], 0)
    assert "var(--c0)" in svg
    assert "#0000" not in svg
    assert "Loss &lt;against&gt; time" in svg
    assert "seconds" in svg


def test_bars_show_every_part_of_a_step() -> None:
    parts = {"compute": 0.2, "exposed": 0.1}
    svg = bars([("dense", parts, 0.3)], ("Parts", "dense: compute, wire"), 1.0, "s")
    assert "var(--compute)" in svg
    assert "var(--exposed)" in svg
    assert all(words in parts_legend() for words in PARTS.values())
