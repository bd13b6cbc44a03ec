"""Cleaners: what they change, what they drop, and in which order they run."""

from __future__ import annotations

import pytest

from thinwire.data.corpus.clean import cleaned, cleaners, long_enough, tidied, unseen
from thinwire.errors import DataError


def test_tidied_text_stays_as_it_is() -> None:
    once = tidied(b"a \t\r\nb\x00\n\n\n\n\nc")
    assert once == b"a\nb\n\n\nc"
    assert tidied(once) == once


def test_short_and_repeated_documents_are_dropped() -> None:
    documents = [b"long enough", b"short", b"long enough", b"another long one"]
    assert list(cleaned(documents, [long_enough(8), unseen()])) == [documents[0], documents[3]]


def test_a_later_cleaner_sees_what_an_earlier_one_made() -> None:
    assert list(cleaned([b"a  ", b"a"], [tidied, unseen()])) == [b"a"]
    assert list(cleaned([b"a  ", b"a"], [unseen(), tidied])) == [b"a", b"a"]


def test_cleaners_have_names() -> None:
    assert len(cleaners(["tidied", "unseen"])) == 2
    with pytest.raises(DataError, match="did you mean 'unseen'"):
        cleaners(["unsen"])
