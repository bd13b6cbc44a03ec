"""One part in twenty is held out, of each document or of many documents."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thinwire.data.corpus.held import MANY, held_out, split


@given(st.text(min_size=1, max_size=400))
def test_both_parts_are_the_document_and_valid_utf8(text: str) -> None:
    train, held = split(text.encode())
    assert (train + held).decode() == text
    train.decode()
    held.decode()


@given(st.integers(20, 200))  # of fewer paragraphs, the last one is more than a twentieth
def test_about_a_twentieth_is_held(paragraphs: int) -> None:
    document = b"A paragraph of a novel.\n\n" * paragraphs
    _, held = split(document)
    assert len(document) / 45 <= len(held) <= len(document) / 20 + 25


def test_of_many_documents_whole_ones_are_held() -> None:
    documents = [b"letter %d" % number for number in range(MANY + 100)]
    train, held = held_out(documents)
    assert sorted(train + held) == sorted(documents)
    assert len(held) == len(documents) // 20
