"""The laws of every codec, on each of its examples.

`make long` tries all examples on every input. The suite takes two of each codec: the plainest, and
the one that stands for it in combinations.
"""

import pytest

from tests.cases import CODECS
from thinwire.core import Codec
from thinwire.testing import check_codec

EXAMPLES = [codec for codecs in CODECS.values() for codec in codecs]
TWO = [codec for codecs in CODECS.values() for codec in dict.fromkeys((codecs[0], codecs[-1]))]


@pytest.mark.parametrize("codec", TWO, ids=repr)
def test_laws(codec: Codec) -> None:
    """All values on one span, and three of them on every other: each codec takes other three."""
    check_codec(codec, every_input=False)


@pytest.mark.long
@pytest.mark.parametrize("codec", EXAMPLES, ids=repr)
def test_laws_on_every_input(codec: Codec) -> None:
    check_codec(codec)
