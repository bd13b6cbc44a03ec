"""Every codec on every route: a legal pair obeys the laws, an illegal one is refused when the
strategy is built.

All legal pairs are tried by `make long`. The suite takes a tenth of them, chosen so that each kind
of codec, by what routes may know of it, flies on each class of routes; each wrapper on each case of
a route; and each class of codecs on some route.
"""

import random
from collections.abc import Sequence

import pytest

from tests.cases import CODECS, OUTERS, ROUTES, SCHEDULES, TARGETS, combined
from tests.members import concrete, files
from thinwire.core import Codec, Route, Target
from thinwire.core.component import inside
from thinwire.core.travel import needing_base
from thinwire.errors import StrategyError
from thinwire.on import deltas, gradients
from thinwire.strategy import Strategy
from thinwire.testing import check_route

ALL_ROUTES = [route for routes in ROUTES.values() for route in routes]
PAIRS = [(route, codec) for route in ALL_ROUTES for codec in combined()]
LEGAL = [(route, codec) for route, codec in PAIRS if not route.refuses(codec)]
ILLEGAL = [(route, codec) for route, codec in PAIRS if route.refuses(codec)]


def kind_of(codec: Codec) -> str:
    """What a route may know of a codec: how its packets may be treated."""
    traits = codec.traits
    treated = (traits.lossy, traits.summable, traits.drops, traits.partial, traits.needs_base)
    return repr((treated, codec.single_packet_coder is None))


def shown(route: Route, codec: Codec) -> set[tuple[str, ...]]:
    """What one pair shows of all of them."""
    outermost = type(codec).__name__
    wrapper = outermost if any(each is not codec for each in inside(codec)) else ""
    return {
        (type(route).__name__, kind_of(codec)),
        (repr(route), "as", wrapper),
        *((type(each).__name__,) for each in inside(codec)),
    }


def chosen(pairs: Sequence[tuple[Route, Codec]]) -> list[tuple[Route, Codec]]:
    """Some pairs, which together show all that there is to show.

    Greedily: the pair that shows most of what is left comes next. Their order is drawn, so that the
    first route of a class is not the one that all codecs are tried on.
    """
    drawn = random.Random(0).sample(list(pairs), len(pairs))
    shows = [shown(route, codec) for route, codec in drawn]
    left, taken = set().union(*shows), []
    while left:
        best = max(range(len(drawn)), key=lambda i: len(shows[i] & left))
        taken.append(drawn[best])
        left -= shows[best]
    return taken


def world(route: Route) -> int:
    """The smallest world of three ranks and more that a route serves."""
    for size in range(3, 17):
        try:
            route.groups(size)
        except StrategyError:
            continue
        return size
    raise AssertionError(f"{route!r} serves no world of up to 16 ranks")


@pytest.mark.parametrize(("route", "codec"), chosen(LEGAL), ids=repr)
def test_a_legal_pair_obeys_the_laws(route: Route, codec: Codec) -> None:
    on: Target = deltas() if needing_base(codec, route) else gradients()
    if route.suits(on) is None:
        assert Strategy(what=codec, how=route, on=on).what is codec
    check_route(route, codec, worlds=[world(route)], every_bucket=False)


@pytest.mark.long
@pytest.mark.parametrize(("route", "codec"), LEGAL, ids=repr)
def test_a_legal_pair_obeys_the_laws_in_every_bucket(route: Route, codec: Codec) -> None:
    check_route(route, codec, worlds=[world(route)])


@pytest.mark.parametrize(("route", "codec"), ILLEGAL, ids=repr)
def test_an_illegal_pair_says_why_and_what_to_do(route: Route, codec: Codec) -> None:
    with pytest.raises(StrategyError, match="Cannot") as caught:
        Strategy(what=codec, how=route)
    assert repr(codec) in str(caught.value)
    assert "Use" in str(caught.value)


def test_legal_and_illegal_pairs_are_both_there() -> None:
    assert len(LEGAL) > 100
    suite = chosen(LEGAL)
    assert 150 < len(suite) < len(LEGAL) / 5
    assert set().union(*(shown(*pair) for pair in suite)) == set().union(
        *(shown(*pair) for pair in LEGAL)
    )
    assert {type(codec).__name__ for _, codec in LEGAL} == set(CODECS)
    assert {type(route).__name__ for route, _ in ILLEGAL} == set(ROUTES) - {
        "auto",
        "gather",
    }  # gather carries everything


@pytest.mark.parametrize(
    ("folder", "cases"),
    [("what", CODECS), ("how", ROUTES), ("when", SCHEDULES), ("on", {**TARGETS, **OUTERS})],
    ids=lambda x: str(x)[:6],
)
def test_no_exported_member_is_missing_here(folder: str, cases: dict[str, list[object]]) -> None:
    exported = {
        cls.__name__ for kind, name in files() if kind == folder for cls in concrete(kind, name)
    }
    where = "examples on its class" if folder == "what" else "a line in tests/cases.py"
    given = {name for name, members in cases.items() if members}
    assert exported == given, f"give every component of {folder}/ {where}"
    for name, members in cases.items():
        assert all(
            name in {type(part).__name__ for part in inside(member)} for member in members
        ), f"{name} is not in all its cases"
