"""The laws of every codec, on each of its examples."""

import pytest

from tests.cases import CODECS
from thinwire.core import Codec
from thinwire.testing import check_codec

EXAMPLES = [codec for codecs in CODECS.values() for codec in codecs]


@pytest.mark.parametrize("codec", EXAMPLES, ids=repr)
def test_laws(codec: Codec) -> None:
    """All values on one span, and three of them on every other: each codec takes other three."""
    check_codec(codec, every_input=False)


@pytest.mark.long
@pytest.mark.parametrize("codec", EXAMPLES, ids=repr)
def test_laws_on_every_input(codec: Codec) -> None:
    check_codec(codec)
