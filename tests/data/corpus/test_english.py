"""The bundled text: whole, nearly ASCII, divided without overlap, and refused when damaged."""

from __future__ import annotations

import gzip
from importlib.resources import files

import pytest

from thinwire.data import english
from thinwire.data.corpus.english import verified
from thinwire.data.corpus.held import split


@pytest.fixture(scope="module")
def packed() -> bytes:
    return files("thinwire.data.corpus").joinpath("english.txt.gz").read_bytes()


def test_the_file_is_small_and_holds_no_time(packed: bytes) -> None:
    assert len(packed) <= 2_500_000
    assert packed[3:8] == bytes(5)  # no flags (so no name), and a modification time of zero


def test_the_text_is_nearly_ascii_utf_8() -> None:
    for part in english():
        text = part.decode()
        assert sum(not letter.isascii() for letter in text) < 10
        assert set("\r\f\t\0").isdisjoint(text)


def test_nothing_is_lost_between_the_parts(packed: bytes) -> None:
    train, validation = english()
    works = verified(packed).split(b"\f")
    assert len(works) == 21
    assert len(train) + len(validation) == sum(map(len, works)) + 2 * (len(works) - 1)


def test_validation_is_the_end_of_every_work(packed: bytes) -> None:
    _, validation = english()
    for work in verified(packed).split(b"\f"):
        head, tail = split(work)
        assert head + tail == work
        assert head.endswith(b"\n\n")
        assert 0.04 < len(tail) / len(work) <= 0.05
        assert tail in validation


def test_no_long_passage_lies_in_both_parts() -> None:
    train, validation = english()
    repeated = sum(
        validation[at : at + 100] in train for at in range(0, len(validation) - 100, 10_000)
    )
    assert repeated == 0


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_cut_file_is_refused(packed: bytes, cut: int) -> None:
    with pytest.raises(ValueError, match="reinstall thinwire"):
        verified(packed[:cut])


@pytest.mark.parametrize("at", [0, 20, 1_000_000, -6])
def test_a_changed_byte_is_refused(packed: bytes, at: int) -> None:
    damaged = bytearray(packed)
    damaged[at] ^= 0x40
    with pytest.raises(ValueError, match="damaged"):
        verified(bytes(damaged))


def test_another_text_is_refused() -> None:
    with pytest.raises(ValueError, match="sha256"):
        verified(gzip.compress(b"Call me Ishmael."))
