import pytest

from tests.how.flights import bucket, contexts_of
from thinwire.core import Codec, Link, Route
from thinwire.errors import StrategyError
from thinwire.how import (
    auto,
    direct,
    gather,
    halving_doubling,
    hierarchical,
    native,
    ring,
    server,
    torus,
    tree,
    two_shot,
)
from thinwire.strategy import Strategy
from thinwire.testing import check_route
from thinwire.what import by_role, cast, feedback, identity, lowrank, topk, uniform

LAN = auto()
LONG = auto(latency_s=0.05)


@pytest.mark.parametrize(
    "codec",
    [identity(), feedback(topk(0.1)), uniform(8), by_role(matrix=feedback(lowrank(2)))],
    ids=repr,
)
@pytest.mark.parametrize(
    "route",
    [LAN, LONG, auto(latency_s=1e-3, losses=9, routes=(ring(), tree(), halving_doubling()))],
    ids=repr,
)
def test_laws(route: auto, codec: Codec) -> None:
    if route.refuses(codec) is None:
        check_route(route, codec, worlds=(1, 2, 5))


@pytest.mark.parametrize(
    ("route", "codec", "numel", "world", "chosen"),
    [
        (LAN, identity(), 10**7, 4, native()),
        (LAN, uniform(4), 10**7, 2, gather()),
        (LAN, uniform(4), 10**7, 8, two_shot(slot_bytes=1 << 20)),
        (LAN, topk(0.01), 10**7, 8, gather()),
        (
            LONG,
            identity(),
            10**7,
            4,
            direct(slot_bytes=100_000_000),
        ),  # 2 MiB a round trip do not fill it
        (LONG, identity(), 10**7, 2, gather()),  # one way instead of two
        (LONG, cast(), 100, 8, gather()),
        (
            auto(1e-3, 1e6, losses=9, routes=(ring(), halving_doubling())),
            identity(),
            80,
            16,
            halving_doubling(),
        ),
    ],
)
def test_it_takes_what_is_fastest(
    route: auto, codec: Codec, numel: int, world: int, chosen: Route
) -> None:
    assert route.choose(codec, bucket(numel), world) == chosen


def test_the_choice_is_the_least_of_the_formulas_to_within_five_per_cent() -> None:
    for world in (2, 3, 5, 8, 16):
        for numel in (100, 10**4, 10**6):
            chosen = LAN.choose(identity(), bucket(numel), world)
            seconds = {
                route: route.seconds(identity(), bucket(numel), contexts_of(world)[0], LAN.link)
                for route in LAN.candidates
            }
            assert seconds[chosen] <= 1.05 * min(seconds.values())


def test_a_lossy_codec_is_not_encoded_again_more_often_than_allowed() -> None:
    only = (ring(), two_shot())
    assert auto(routes=only).choose(uniform(4), bucket(), 8) == two_shot()
    assert auto(routes=only).reencodes(uniform(4), 8) == 1
    with pytest.raises(
        StrategyError, match=r"ring\(\): it encodes a sum again 7 times, where losses=1 are allowed"
    ):
        auto(routes=(ring(),)).choose(uniform(4), bucket(), 8)
    assert auto(routes=(ring(),), losses=7).choose(uniform(4), bucket(), 8) == ring()


def test_its_reckoning_can_be_read() -> None:
    told = LAN.explain(uniform(4), bucket(10**6), 4)
    assert "> two_shot(back=None, slot_bytes=1048576): 0.00" in told
    assert "  native(): Cannot carry uniform" in told
    assert "ring(): it encodes a sum again 3 times" in told


def test_what_was_tried_corrects_the_formulas() -> None:
    corrected = LONG.corrected(lambda route: 1.0 if route == native() else 99.0)
    assert LONG.choose(identity(), bucket(10**7), 4) != native()
    assert corrected.choose(identity(), bucket(10**7), 4) == native()
    assert "> native()" in corrected.explain(identity(), bucket(10**7), 4)
    assert corrected.bind(4, corrected.link) == LONG
    assert native() not in LONG.alternatives(uniform(4), 4)
    assert native().alternatives(identity(), 4) == (native(),)
    assert native().corrected(lambda _: 2.0) == native()


def test_settling_writes_the_measured_link_into_it() -> None:
    bound = auto().bind(8, Link(0.05, 1e8, 1e-5, window_bytes=1 << 20))
    assert bound == auto(0.05, 1e8, 1e-5, window_bytes=1 << 20, waits=False)
    assert auto(routes=(torus(2, 2), ring())).bind(8).routes == (ring(),)
    assert auto().bind(3) == auto()


def test_candidates_that_cannot_serve_a_world_are_left_out() -> None:
    route = auto(routes=(torus(2, 2), server((5,)), hierarchical(native(), native(), 4)))
    assert route.groups(4) == ()
    assert route.groups(8) == hierarchical(native(), native(), 4).groups(8)
    assert route.choose(identity(), bucket(), 4) == hierarchical(
        native(), native(), 4
    )  # one node: two exchanges, where a torus has four
    assert auto(routes=route.routes[:2]).choose(identity(), bucket(), 4) == torus(2, 2)
    with pytest.raises(
        StrategyError, match=r"2 by 2 are 4 ranks(.|\n)*no ranks \[5\](.|\n)*no multiple of 4"
    ):
        route.groups(3)


def test_a_codec_that_no_candidate_carries_is_refused() -> None:
    with pytest.raises(StrategyError, match=r"over ring\(\).*over two_shot\(\)"):
        Strategy(what=topk(0.1), how=auto(routes=(ring(), two_shot())))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"latency_s": -1.0}, "latency_s=-1"),
        ({"rate_bytes_per_s": 0.0}, "rate_bytes_per_s=0"),
        ({"window_bytes": 0}, "window_bytes=0"),
        ({"losses": -1}, "at least 0 times"),
        ({"routes": (auto(),)}, "cannot be auto"),
        ({"times": (1.0,)}, "one for each of the 7 candidates"),
        ({"times": (0.0,) * 7}, "each is above 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(StrategyError, match=told):
        auto(**settings)  # type: ignore[arg-type]
