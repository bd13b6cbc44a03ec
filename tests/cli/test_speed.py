"""How fast a codec is, in words, and the warning where a link is faster."""

from typing import Any

import pytest

from thinwire.cli._speed import speed_words


def facts(**own: Any) -> dict[str, Any]:
    return {"encode_ns": 2.0, "decode_ns": 1.0, "pays_below_gbits": 9.0, "gbits": None} | own


def test_a_codec_that_saves_nothing() -> None:
    assert speed_words(facts(pays_below_gbits=None)).endswith("it saves no bytes.")


def test_one_of_several_rounds_has_no_decoding_of_its_own() -> None:
    assert "decode" not in speed_words(facts(decode_ns=None))


@pytest.mark.parametrize(("gbits", "warned"), [(None, False), (9.0, False), (10.0, True)])
def test_a_faster_link_is_a_warning(gbits: float | None, warned: bool) -> None:
    text = speed_words(facts(gbits=gbits))
    assert "2 ns a value to encode, 1 ns a value to decode" in text
    assert "links below 9.0 Gb/s" in text
    assert ("WARNING: a link of 10 Gb/s" in text) == warned
