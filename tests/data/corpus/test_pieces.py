"""Pieces of a long text are the text, and none is cut inside a word if it need not be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thinwire.data.corpus.pieces import cut_text


@given(st.text(alphabet="ab \n", max_size=300), st.integers(4, 40))
def test_pieces_together_are_the_text(text: str, size: int) -> None:
    cut = list(cut_text(text, size))
    assert "".join(cut) == text
    assert all(size <= len(piece) <= 2 * size for piece in cut[:-1])


def test_a_paragraph_is_a_better_cut_than_a_line_and_a_line_than_a_word() -> None:
    text = "word " * 10 + "\n\n" + "word " * 30
    first = next(cut_text(text, 40))
    assert text[len(first) :].startswith("\nword")


def test_one_long_word_is_cut_anywhere() -> None:
    assert [len(piece) for piece in cut_text("x" * 100, 20)] == [40, 40, 20]
