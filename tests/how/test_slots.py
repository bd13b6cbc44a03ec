"""Large messages of `two_shot` and `direct` go in slots: the same sums, and no two messages meet at
one rank."""

import pytest
import torch

from tests.how.flights import bucket, contexts_of, launch, values, watched
from thinwire.core import Codec, Exchange, Hop, Link
from thinwire.drive.local import run
from thinwire.errors import StrategyError
from thinwire.how import auto, direct, gather, hierarchical, native, server, two_shot
from thinwire.testing import check_route
from thinwire.what import feedback, identity, uniform

FAR, NEAR = Link(0.05, 125e6, waits=True), Link(0.0001, 125e6, waits=True)


@pytest.mark.parametrize("codec", [identity(), feedback(uniform(4, block=8))], ids=repr)
def test_laws(codec: Codec) -> None:
    check_route(two_shot(slot_bytes=0), codec, worlds=(1, 2, 3, 5))


def test_the_sums_are_the_same() -> None:
    xs, spec = values(5, bucket()), bucket()
    for ours, slots in (
        (two_shot(), two_shot(slot_bytes=1)),
        (two_shot(uniform(8)), two_shot(uniform(8), slot_bytes=1)),
    ):
        one, other = (run(launch(route, uniform(4, block=8), xs, spec)) for route in (ours, slots))
        assert all(torch.equal(one[rank].total, other[rank].total) for rank in xs)


def exchanges(route: direct | two_shot, world: int = 4) -> list[int]:
    """How many messages each exchange of rank 0 sends."""
    told: list[int] = []

    def look(hop: Hop) -> None:
        assert isinstance(hop, Exchange)
        assert len(hop.recv) <= len(hop.send)
        told.append(len(hop.send))

    flights = launch(route, identity(), values(world, bucket()), bucket())
    run({rank: watched(flight, look) if rank == 0 else flight for rank, flight in flights.items()})
    return told


def test_a_slot_has_one_message_there_and_one_back() -> None:
    message = bucket().numel  # bytes: 4 a value, a quarter of them
    assert exchanges(direct()) == [3, 3]  # a small bucket
    assert exchanges(direct(slot_bytes=message)) == exchanges(direct(slot_bytes=0)) == [1] * 6
    assert exchanges(direct(slot_bytes=message + 1)) == [3, 3]
    assert exchanges(direct(slot_bytes=0), world=2) == [1, 1]


def test_what_was_measured_says_from_which_size_on() -> None:
    assert two_shot().needs_link
    assert not two_shot(slot_bytes=5).needs_link
    assert two_shot().bind(4, FAR) == two_shot(
        slot_bytes=100_000_000
    )  # a round trip of 100 ms is an eighth of it
    assert direct().bind(4, NEAR) == direct(slot_bytes=1 << 20)
    assert direct().bind(4) == direct()
    assert direct(slot_bytes=7).bind(4, FAR) == direct(slot_bytes=7)
    nested = hierarchical(native(), two_shot(), 2)
    assert nested.needs_link
    assert nested.bind(4, FAR).outer == two_shot(slot_bytes=100_000_000)
    assert not server().needs_link
    assert not gather().needs_link


def test_auto_reckons_with_the_slots_of_its_link() -> None:
    (chosen,) = {route for route in auto(latency_s=0.05).candidates if isinstance(route, two_shot)}
    assert chosen == two_shot(slot_bytes=100_000_000)
    assert chosen.seconds(uniform(4), bucket(), contexts_of(8)[0], FAR) < two_shot(
        slot_bytes=0
    ).seconds(uniform(4), bucket(), contexts_of(8)[0], FAR)


def test_a_size_below_nothing_is_refused() -> None:
    with pytest.raises(
        StrategyError,
        match="slot_bytes is the size of the smallest message with a slot, at least 0",
    ):
        direct(slot_bytes=-1)
