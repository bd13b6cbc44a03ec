"""Code that makes a member, read back without running it."""

import pytest

from tests.cases import CODECS, SCHEDULES
from thinwire.errors import StrategyError
from thinwire.strategy.reading import spelled

MEMBERS = [("what", each) for some in CODECS.values() for each in some]
MEMBERS += [("when", each) for some in SCHEDULES.values() for each in some]


@pytest.mark.parametrize(("kind", "member"), MEMBERS, ids=map(repr, MEMBERS))
def test_a_repr_reads_back(kind: str, member: object) -> None:
    assert spelled(kind, repr(member)) == member


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("", "is no code"),
        ("uniform(", "is no code"),
        ("3", "makes no component"),
        ("unifrom(4)", "Did you mean uniform"),
        ("uniform(9)", "uniform"),
        ("uniform(4, colour=2)", "colour"),
        ("topk(0.1) >> 3", "topk"),
        ("__import__('os')", "no component is called '__import__'"),
        ("uniform(4).bits", "is not read here"),
        ("[each for each in (1,)]", "is not read here"),
    ],
)
def test_what_is_no_member(code: str, told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        spelled("what", code)
    assert told in str(caught.value)


def test_a_name_alone_takes_the_defaults() -> None:
    assert spelled("what", "identity") == CODECS["identity"][0]
